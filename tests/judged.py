"""What the tests of judges share: items, and a desk that sees each of them done."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import SHARED

from bpo_data.artifacts import Artifact, Draft
from bpo_data.components.judging import Item, Judge, Judgement
from bpo_data.engines import at
from bpo_data.llm.desk import Desk
from bpo_data.runtime import Runtime
from bpo_data.shelf import Shelf
from bpo_data.work import Work

PROMPT = ({"role": "user", "content": "say something"},)
INJECTIONS = SHARED / "bad_inputs" / "44_injection_in_response.jsonl"


def item(
    text: str, group: str = "p", given: float | None = None, reference: str | None = None
) -> Item:
    return Item(PROMPT, text, group, reference, given)


def judged(
    judge: Judge, items: Sequence[Item], known: Sequence[Item] = (), folder: Path | None = None
) -> Judgement:
    counted: list[int] = []
    runtime = Runtime(folder=str(folder), device="cpu") if folder else Runtime(device="cpu")
    found = judge(items, known, Desk("score", runtime, done=counted.append))
    assert sum(counted) == len(items) == len(found.verdicts)
    return found


def scores(judgement: Judgement) -> list[float | None]:
    return [verdict.score for verdict in judgement.verdicts]


def lines_of(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return [json.loads(line) for line in path.read_text().splitlines()]


def fields_of(request: str) -> list[tuple[str, str]]:
    """(name, text) of the fields of a judge's request, as its own last marker delimits them."""
    mark = re.findall(r"^<</\w+ ([0-9a-f]{16})>>$", request, re.MULTILINE)[-1]
    return re.findall(rf"^<<(\w+) {mark}>>\n(.*?)\n<</\1 {mark}>>$", request, re.M | re.S)


def in_files(folder: Path, table: pa.Table, rows: int) -> Artifact:
    """A gradients table as an artifact of several files."""

    def run(draft: Draft) -> None:
        draft.map_parts(table, at(lambda part: part), rows)

    folder.mkdir(parents=True, exist_ok=True)
    shelf = Shelf(tempfile.mkdtemp(dir=folder))
    return shelf.make(Work("gradients", 1, {}, {}), "gradients", table.schema, {}, run)
