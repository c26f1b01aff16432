"""Makers for tests of engines, without torch: parts made in milliseconds, and what breaks once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from bpo_data.artifacts import Artifact, Draft
from bpo_data.engines import Engine, Make, Place, engine_of
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.shelf import Shelf
from bpo_data.tables import columns
from bpo_data.work import Work

SCHEMA = columns(row_id=pa.string(), square=pa.int64())
ROWS = 48
PART_ROWS = 4


def numbers(count: int = ROWS) -> pa.Table:
    return pa.table({"row_id": [f"r{n:03d}" for n in range(count)], "n": range(count)})


class Odd(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(f"{what} at {where}")


@dataclass(frozen=True)
class Squares:
    """How a worker is set up to square; ``notes`` is a folder for what tests want to know."""

    notes: Path
    seconds: float = 0.0
    """A part takes so long,"""
    slow: float = 0.0
    """and so much longer on a machine with SLOW in its environment."""
    fault: str = ""
    """A function below, called at row ``row``,"""
    row: int = 20
    always: bool = False
    """each time and not only the first."""
    crowd: int = 1
    """Nobody begins before so many workers are there."""

    def __call__(self, place: Place) -> Make:
        (self.notes / f"worker-{os.getpid()}").touch()
        while len(list(self.notes.glob("worker-*"))) < self.crowd:
            time.sleep(0.05)
        return self.squares

    def squares(self, part: pa.Table) -> pa.Table:
        first = part["n"][0].as_py()
        if os.environ.get("SLOW"):
            (self.notes / f"slow-{os.getpid()}").touch()
            time.sleep(self.slow)
        time.sleep(self.seconds)
        if self.fault and first == self.row and (self.always or self.once()):
            FAULTS[self.fault]()
        with open(self.notes / f"made-{first:03d}", "a", encoding="utf-8") as file:
            file.write("x")
        return pa.table({"row_id": part["row_id"], "square": [n.as_py() ** 2 for n in part["n"]]})

    def once(self) -> bool:
        try:
            (self.notes / "broken").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Shifted(Squares):
    """Squares, and a number more that stands in a file."""

    folder: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)

    def __call__(self, place: Place) -> Make:
        file = Path(place.here(self.folder)) / "number"
        (self.notes / f"read-{os.getpid()}").write_text(str(file))
        shift, make = int(file.read_text()), super().__call__(place)

        def shifted(part: pa.Table) -> pa.Table:
            made = make(part)
            return pa.table(
                {"row_id": made["row_id"], "square": [n.as_py() + shift for n in made["square"]]}
            )

        return shifted


def shift(folder: Path, number: int) -> Artifact:
    """An artifact with a number in a file, for ``Shifted``."""

    def run(draft: Draft) -> None:
        draft.file("model/number").write_text(str(number))
        draft.write(SCHEMA.empty_table())

    return Shelf(folder).make(Work("sft", 1, {}, {}), "shift", SCHEMA, {}, run)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def odd() -> None:
    raise Odd("something odd", 7)


def user() -> None:
    raise UserError("squares.size=7: choose 8.")


def full() -> None:
    raise OSError(28, "No space left on device", "/somewhere")


def tarry() -> None:
    time.sleep(6.0)


FAULTS: dict[str, Callable[[], None]] = {one.__name__: one for one in (die, odd, user, full, tarry)}


def make(folder: Path, engine: Engine | None, squares: Squares) -> Artifact:
    """What these squares end in; parts that are in the folder are not remade."""
    squares.notes.mkdir(parents=True, exist_ok=True)
    work = Work("squares", 1, {}, {})

    def run(draft: Draft) -> None:
        draft.map_parts(numbers(), squares, PART_ROWS)
        draft.facts |= draft.engine.facts

    return Shelf(folder).make(work, "squares", SCHEMA, {}, run, engine)


if __name__ == "__main__":  # a driver of its own
    folder, notes, address, seconds, crowd = sys.argv[1:]
    runtime = Runtime(device="cpu", engine="ray", address=address)
    squares = Squares(Path(notes), float(seconds), crowd=int(crowd))
    print(make(Path(folder), engine_of(runtime), squares).digest)
