"""Whatever a file holds, ``load`` reads or rejects every row of it, or refuses it in one line."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_files
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, note, settings

from bpo_data.artifacts import Draft
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.stages import load

SECONDS = 20
"""A file of a few kilobytes that takes longer has hung."""
LONG = float(os.environ.get("FUZZ_SECONDS", 900))
"""Seconds of the long run."""
MEMORY = 3 * 2**29
"""Bytes of address space beyond what the process has before the file."""


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Within, time and memory have a limit."""

    def hung(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    have = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hung)
    resource.setrlimit(resource.RLIMIT_AS, (have + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def rows_written(content: bytes, path: Path) -> int | None:
    """How many rows a file has by what its format says; None where that is not so simple."""
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    if path.name.endswith(".jsonl.gz"):
        content = zlib.decompress(content, 31)
    if ".jsonl" in path.name:
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return sum(bool(line.strip()) for line in lines)
    return None


def check(name: str, content: bytes) -> str:
    """``read`` or ``refused``; fails for anything else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        config = load.LoadConfig(path=str(path))
        assert not list(config.problems())
        draft = Draft(Path(folder) / "made", "prompts", load.schema(config), {}, "load")
        try:
            with bounds(), contextlib.redirect_stderr(io.StringIO()):
                load.run(draft, config, Runtime())
        except UserError as error:
            said = str(error)
            assert said.isprintable(), repr(said)
            assert len(said.splitlines()) == 1, repr(said)
            assert len(said) < 4000, said
            return "refused"
        facts = draft.facts
        rejected = pq.read_table(draft.folder / "rejected.parquet")
        read = draft.read().num_rows + facts["notices"].get("repeated_prompt", 0)
        assert read + rejected.num_rows == facts["rows_in"]
        expected = rows_written(content, path)
        assert expected in (None, facts["rows_in"])
        assert all(said.isprintable() for said in facts.get("notes", ())), facts["notes"]
        return "read"


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(hostile_files.files())
def test_every_row_of_a_broken_file_is_read_or_rejected_or_the_file_refused(file):
    note(f"{file[0]}: {file[1]!r}")
    check(*file)


@pytest.mark.slow
def test_a_quarter_of_an_hour_of_broken_files():
    end, tried = time.monotonic() + LONG, Counter[str]()

    @settings(
        max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(hostile_files.files())
    def some(file):
        note(f"{file[0]}: {file[1]!r}")
        tried[f"{file[0]} {check(*file)}"] += 1

    while time.monotonic() < end:
        some()
    print(dict(tried))
    assert len(tried) == 2 * 9, f"every kind of file both read and refused: {dict(tried)}"
