"""Where the parts of a stage's table are made: here, in several processes, or on a Ray cluster.

A part is a name and some rows, and what is made of it depends on these rows alone. So neither the
engine, nor the number of workers, nor the order in which they finish changes a byte. A stage hands
``Draft.map_parts`` a way to set a maker up, which every worker calls once, and knows nothing of
where that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from bpo_data.runtime import Runtime

if TYPE_CHECKING:
    from bpo_data.engines.lines import Lines

Make = Callable[[pa.Table], pa.Table]
"""Rows of one part -> the part of the table."""

Part = tuple[str, pa.Table]


class Write(Protocol):
    """Puts a finished part where it belongs, whole or not at all."""

    @property
    def folder(self) -> Path:
        """Where that is; absolute. It holds a folder for what is in the writing."""

    def __call__(self, name: str, table: pa.Table) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a maker is set up."""

    number: int | None = None
    """Of the worker; None where parts are made in the process that runs the stage."""

    progress: Any = None
    """A bar to tell of rows done within a part; None in workers."""

    folders: Mapping[str, str] = field(default_factory=dict)
    """Where a set-up finds what it reads, as far as that is not where the stage runs."""

    def device(self, runtime: Runtime) -> str:
        """Where a model goes here: each worker has a GPU of its own as far as they go round."""
        return runtime.torch_device(spread=self.number is None, process=self.number)

    def here(self, location: str) -> str:
        """Where a folder or file that a set-up ``reads`` is on this machine; a model of the hub
        is where it is for all."""
        return self.folders.get(location, location)


SetUp = Callable[[Place], Make]
"""Called once by every worker; with more than one process, what it holds must be picklable. One
that loads folders or files names them in an attribute ``reads``, hub names among them, and asks
``Place.here`` for each: a machine of a cluster may have them elsewhere."""


def set_up_in_worker(set_up: SetUp, place: Place, threads: int) -> Make:
    """A worker's maker, with the threads of its libraries as the process that runs stages has them:
    on more threads a product of matrices ends in other bits."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)  # for what the set-up computes
    make = set_up(place)
    threadpool_limits(threads)  # for libraries that it has loaded
    return make


@dataclass(frozen=True)
class Job:
    """Rows to be made of other rows, in parts."""

    name: str
    """Of the parts' files, where they are kept."""
    rows: pa.Table
    set_up: SetUp
    schema: pa.Schema
    """Of what is made."""
    part_rows: int


Tell = Callable[[int], None]
"""Told of n more rows that are done."""

Spread = Callable[[Job, Tell], pa.Table]
"""How a stage's helpers have a job done, such as by ``Draft.in_parts``: the rows made, in order."""


def directly(job: Job, tell: Tell) -> pa.Table:
    """All parts here, one after the other, and none kept on the way."""
    make = job.set_up(Place())
    made = []
    for start in range(0, max(job.rows.num_rows, 1), job.part_rows):
        part = job.rows.slice(start, job.part_rows)
        made.append(make(part).select(job.schema.names).cast(job.schema))
        tell(part.num_rows)
    return pa.concat_tables(made)


def at(make: Make) -> SetUp:
    """A maker that stands ready in this process."""
    return lambda place: make


class Engine(Protocol):
    @property
    def here(self) -> bool:
        """Whether parts are made in the process that runs the stage."""

    @property
    def facts(self) -> dict[str, Any]:
        """What an artifact's facts say of it; nothing of the local one."""

    def check(self) -> None:
        """Raise UserError where it cannot begin; before the first stage is made."""

    def each(
        self, parts: Iterable[Part], set_up: SetUp, write: Write, progress: Any
    ) -> Iterator[int]:
        """Make and write every part; yields its number of rows as it is done, in any order.

        Parts are taken as there is somebody to make them, so that few are held at a time.

        The first error that a maker raises is raised here; parts that are done by then stay. Asked
        to stop, it finishes those under way and raises KeyboardInterrupt.
        """

    def lines(self, here: bool) -> Lines | None:
        """Lines to its processes; None where there is but this one. ``here``: on this machine."""


def engine_of(runtime: Runtime) -> Engine:
    """The one that ``runtime.engine`` names."""
    if runtime.engine == "processes":
        from bpo_data.engines.processes import Processes

        return Processes(runtime)
    if runtime.engine == "ray":
        from bpo_data.engines.cluster import Cluster

        return Cluster(runtime)
    from bpo_data.engines.local import Local

    return Local()


def named(error: BaseException, part: Part) -> None:
    """Add to an error which rows it was about: the ids that the part begins and ends with."""
    name, rows = part
    ids = next((column for column in rows.column_names if column.endswith("_id")), None)
    words = f"{rows.num_rows} rows"
    if ids is not None and rows.num_rows:
        words += f", {ids} {rows[ids][0].as_py()} to {rows[ids][-1].as_py()}"
    error.add_note(f"It was making {name}: {words}.")


def alone(part: Part) -> Part:
    """The same part for another process: a slice of a table takes the whole table along."""
    name, rows = part
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return name, pa.ipc.open_stream(sink.getvalue()).read_all()
