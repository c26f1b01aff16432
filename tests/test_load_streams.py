"""Load holds no more rows than it has to, and what comes out is what grouping them all gives."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forking import fork
from helpers import environment, run

from bpo_data import lots, streaming
from bpo_data.artifacts import Draft
from bpo_data.components import pooling, splits
from bpo_data.components.rows import Given, Rejected, Row
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.spill import Spill
from bpo_data.stages import load
from bpo_data.tables import Message, lot, prompt_id

PROMPTS: list[tuple[Message, ...]] = [
    ({"role": "system", "content": "a"}, {"role": "user", "content": "b"}),
    *(({"role": "user", "content": letter},) for letter in "abcdefghijk"),
]
WORDS = ["a", "b", "é\u2028", '"\n', ""]


def some_rows(draw: random.Random) -> list[Row | Rejected]:
    """Rows in which prompts and responses repeat, some set aside; some sources name splits, and
    few of them more than one of a prompt, or one that there is not."""
    prompts = PROMPTS[: draw.choice([1, 4, 12])]
    words = draw.choice([[None], [None], ["seed", "pool", "test"], [None, "pool", "test"]])
    said = {str(prompt): draw.choice(words) for prompt in prompts}
    wrong, rated = draw.choice([0, 0, 0.1]), draw.choice([0, 0.05, 0.5])

    def response() -> Given:
        own = draw.random() < rated
        return Given(
            draw.choice(WORDS),
            draw.choice("mn"),
            draw.choice([None, -1.0, 0.1, 2.5]),
            draw.choice([(), (("kind", 1.5),), (("brief", 0.1), ("kind", 2.0))]) if own else (),
            draw.choice(["", "so"]) if own else "",
        )

    def row() -> Row | Rejected:
        origin, prompt = f"a:{draw.randrange(10)}", draw.choice(prompts)
        if draw.random() < 0.2:
            return Rejected(origin, draw.choice("xyzw"), draw.choice(WORDS), draw.randbytes(9))
        split = draw.choice([said[str(prompt)], None, ""])
        return Row(
            prompt,
            tuple(response() for _ in range(draw.randrange(4))),
            origin,
            topic=draw.choice([None, "t", "u"]),
            reference=draw.choice([None, "r"]),
            split=draw.choice(["dev", "seed"]) if draw.random() < wrong else split,
            notices=draw.choice([(), ("hh_text",), ("hh_text", "huge_text")]),
        )

    return [row() for _ in range(draw.choice([0, 1, 10, 40]))]


@dataclass
class Source:
    """Rows that are at hand."""

    given: list[Row | Rejected]
    seen: tuple[str, ...] = ("prompt", "response")

    def rows(self) -> Iterator[Row | Rejected]:
        yield from self.given


@dataclass
class Config(load.LoadConfig):
    at_hand: list[Row | Rejected] = field(default_factory=list)

    def source(self) -> Any:
        return Source(self.at_hand)


def streamed(folder: Path, config: load.LoadConfig) -> Draft:
    draft = Draft(folder, "prompts", load.schema(config), {}, "load")
    load.run(draft, config, Runtime())
    return draft


def by_lot(names: list[str], seed: int, purpose: str) -> list[str]:
    return sorted(names, key=lambda name: lot(seed, purpose, name))


def in_memory(config: Config) -> tuple[list[dict[str, Any]], bool, dict[str, Any]]:
    """The rule, with all rows at once: the table, whether it is rated, and facts."""
    grouped: dict[str, list[Row]] = {}
    good = [row for row in config.at_hand if isinstance(row, Row)]
    bad = [row for row in config.at_hand if isinstance(row, Rejected)]
    for row in good:
        grouped.setdefault(prompt_id(row.prompt), []).append(row)
    if not grouped:
        raise UserError("none")
    kept = list(grouped)
    if config.limit:
        kept = by_lot(kept, config.seed, "limit")[: config.limit]
    split = {}
    for name in kept:
        said = {row.split for row in grouped[name]} - {None, ""}
        if len(said) > 1 or said - {"seed", "pool", "test"}:
            raise UserError(f"{grouped[name][0].origin}: split {', '.join(sorted(said))} of one")
        if said:
            split[name] = said.pop()
    left = by_lot([name for name in kept if name not in split], config.seed, "split")
    test, seed = (round(share * len(left)) for share in (config.test_share, config.seed_share))
    split |= {
        name: "test" if place < test else "seed" if place < test + seed else "pool"
        for place, name in enumerate(left)
    }
    notices = Counter(notice for row in good for notice in row.notices)
    notices["contradicting_scores"] += 0
    table = []
    for name in sorted(kept):
        rows = grouped[name]
        pooled = [one for row in rows for one in row.given]
        score = {one: -1.0 if one.score is None else one.score for one in pooled}
        first = min(rows, key=lambda row: row.origin)
        distinct = sorted(
            dict.fromkeys(pooled),
            key=lambda one: (one.author, one.text, score[one], one.criteria, one.rationale,
                             one.score is None),
        )  # fmt: skip
        notices["repeated_prompt"] += len(rows) - 1
        notices["repeated_response"] += len(pooled) - len(distinct)
        texts = {one.text: {other.score for other in pooled if other.text == one.text}
                 for one in pooled}  # fmt: skip
        notices["contradicting_scores"] += any(len(scores) > 1 for scores in texts.values())
        given = [
            {
                "text": one.text,
                "author": one.author,
                "score": one.score,
                "criteria": [{"name": n, "points": p} for n, p in one.criteria] or None,
                "rationale": one.rationale or None,
            }
            for one in distinct
        ]
        table.append(
            {"prompt_id": name, "prompt": list(first.prompt), "given": given,
             "topic": first.topic, "reference": first.reference, "split": split[name],
             "source": first.origin}
        )  # fmt: skip
    facts = {
        "rows_in": len(config.at_hand),
        "rows_rejected": len(bad),
        "rejected_by_reason": dict(Counter(row.reason for row in bad)),
        "rows_of_prompts_left_out_by_limit": len(good) - sum(len(grouped[name]) for name in kept),
        "prompts": {name: list(split.values()).count(name) for name in ("seed", "pool", "test")},
        "responses_given": sum(len(row["given"]) for row in table),
        "notices": {
            name: count
            for name, count in sorted(notices.items())
            if count or name == "contradicting_scores"
        },
    }
    rated = any(one["criteria"] or one["rationale"] for row in table for one in row["given"])
    return table, rated, facts


def written(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A Parquet file of all rows in one go."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
    return file.getvalue()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go to disk, are parted again and drawn in several looks as if they were many."""
    monkeypatch.setattr(load, "Spill", partial(Spill, held=1500, largest=600))
    monkeypatch.setattr(load, "TOGETHER", 3000)
    monkeypatch.setattr(splits, "highest_drawn", partial(lots.highest_drawn, held=2))


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("start", range(0, 200, 50))
def test_what_streams_through_is_what_grouping_all_rows_gives(tmp_path, start):
    for number in range(start, start + 50):
        check(tmp_path / str(number), random.Random(number))


def check(folder: Path, draw: random.Random) -> None:
    config = Config(
        test_share=draw.choice([0, 0.1, 0.5]),
        seed_share=draw.choice([0, 0.4]),
        limit=draw.choice([0, 0, 1, 3, 6, 100]),
        seed=draw.randrange(5),
        at_hand=some_rows(draw),
    )
    try:
        table, rated, facts = in_memory(config)
    except UserError as wanted:
        with pytest.raises(UserError, match=str(wanted)):
            streamed(folder, config)
        return
    draft = streamed(folder, config)
    schema = load.schema(config)
    if rated:
        schema = schema.set(2, schema.field(2).with_type(pooling.RATED))
    assert (folder / "prompts.parquet").read_bytes() == written(table, schema)
    bad = [vars(row) for row in config.at_hand if isinstance(row, Rejected)]
    assert (folder / "rejected.parquet").read_bytes() == written(bad, load.REJECTED)
    assert {name: draft.facts[name] for name in facts} == facts
    assert list(draft.facts["rejected_by_reason"]) == list(facts["rejected_by_reason"])
    assert sorted(one.name for one in folder.iterdir()) == ["prompts.parquet", "rejected.parquet"]


def many(count: int) -> list[Row | Rejected]:
    """Pairs, some of which repeat a prompt, and rows set aside."""
    found: list[Row | Rejected] = []
    for n in range(count):
        prompt = ({"role": "user", "content": f"what is {n - n % 7 % 2}? " + "more " * 20},)
        found.append(Row(prompt, (Given(f"yes {n}", "m"), Given(f"no {n}", "n")), f"a:{n:09d}"))
        if n % 20 == 0:
            found.append(Rejected(f"a:{n:09d}", "invalid_json", "why", b"{" * 100))
    return found


def test_what_load_holds_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """Python's own memory and Arrow's, with bounds so low that a thousand rows meet them."""
    monkeypatch.setattr(load, "Spill", partial(Spill, held=60_000, largest=40_000))
    monkeypatch.setattr(load, "TOGETHER", 30_000)
    monkeypatch.setattr(splits, "highest_drawn", partial(lots.highest_drawn, held=100))
    monkeypatch.setattr(lots, "LETTERS", 1)
    monkeypatch.setattr(streaming, "GROUP_ROWS", 100)
    flush, arrow = streaming.Growing.flush, [0]

    def watched(self: streaming.Growing) -> None:
        flush(self)
        arrow[-1] = max(arrow[-1], pa.total_allocated_bytes())

    monkeypatch.setattr(streaming.Growing, "flush", watched)
    streamed(tmp_path / "imports", Config(at_hand=many(10)))
    python = []
    for count in (1000, 4000):
        config = Config(at_hand=many(count), limit=count // 2, seed_share=0.2)
        arrow.append(0)
        tracemalloc.start()
        streamed(tmp_path / str(count), config)
        python.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert python[1] < 1.5 * python[0], python
    assert arrow[2] < 1.5 * arrow[1], arrow


STOPS = """
import os, signal, sys
from functools import partial
from bpo_data.components.reading import layouts
from bpo_data.pipelines.run import main
from bpo_data.spill import Spill
from bpo_data.stages import load

load.Spill = partial(Spill, held=20_000)
row, count = layouts.Converter.row, 0

def counted(self, *record):
    global count
    count += 1
    if count == 700:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return row(self, *record)

layouts.Converter.row = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_load_that_is_stopped_or_killed_ends_like_an_unbroken_one_when_run_again(tmp_path, name):
    path = tmp_path / "a.jsonl"
    pairs = [{"prompt": f"p{n}", "chosen": "yes", "rejected": "no"} for n in range(900)]
    path.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    arguments = ("recipe=own_data", "stage=load", f"load.path={path}")

    def made(folder: str) -> str:
        ended = run(*arguments, f"runtime.folder={tmp_path}/{folder}")
        assert ended.returncode == 0, ended.stderr
        (manifest,) = tmp_path.glob(f"{folder}/load-*/manifest.json")
        assert {one.name for one in manifest.parent.iterdir()} == {
            "manifest.json", "prompts.parquet", "rejected.parquet"
        }  # fmt: skip
        return str(json.loads(manifest.read_text())["digest"])

    words = ["-c", STOPS, name, *arguments, f"runtime.folder={tmp_path}/broken"]
    process = fork(words, environment())
    _, error = process.communicate(timeout=120)
    (partial_folder,) = tmp_path.glob("broken/load-*.partial")
    if name == "SIGTERM":
        assert process.returncode == 130, error
        assert "stopped in load; the same command goes on from here" in error
        assert not any(partial_folder.rglob("*"))
    else:
        assert process.returncode == -signal.SIGKILL
        assert any(partial_folder.glob(".scratch/rows/*")), "nothing was on disk yet"
    assert made("broken") == made("unbroken")


PEAK = """
import re, sys
from bpo_data.pipelines.run import main

status = main(sys.argv[1:])
# Not ru_maxrss, which begins with that of the process that started this one.
print("peak", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_peak_memory_of_a_fourfold_source_is_that_of_the_source(tmp_path, ending):
    """Beyond the rows that fill every bound: ids, a group of rows, what is held before the disk."""
    words = "how often does the tall ship carry apples past the old lighthouse "
    peaks = []
    for count in (80_000, 320_000):
        path = tmp_path / f"{count}.{ending}"
        made = (
            {
                "id": f"row {n}",
                "prompt": f"{words * 3}{n}?",
                "chosen": f"{words[n % 60 :] * 2}{n}",
                "rejected": f"{words[n % 50 :] * 3}{n}" if n % 50 else "",
            }
            for n in range(count)
        )
        if ending == "jsonl":
            with open(path, "w") as file:
                file.writelines(json.dumps(one) + "\n" for one in made)
        else:
            pq.write_table(pa.Table.from_pylist(list(made)), path)
        arguments = ("recipe=own_data", "stage=load", f"load.path={path}")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments, f"runtime.folder={tmp_path}/{count}"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "rows set aside" in done.stderr
        peaks.append(int(done.stdout.split("peak")[-1]))
    print(f"{ending}: {peaks[0] / 1024:,.0f} and {peaks[1] / 1024:,.0f} MiB")
    assert peaks[1] < 1.2 * peaks[0], peaks
