"""Export, some whole prompts at a time, writes what one join of whole tables would."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exporting import ALL
from helpers import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import Rows, Shape, artifacts, many, rows_of

from bpo_data import disk, side_by_side
from bpo_data.artifacts import RESUMED, Artifact, Draft
from bpo_data.components.exporters import measuring
from bpo_data.components.exporters.target import Target
from bpo_data.engines import engine_of
from bpo_data.runtime import Runtime
from bpo_data.stages import export
from bpo_data.stages.export import ExportConfig
from bpo_data.tables import lot


def expected(rows: Rows, config: ExportConfig) -> dict[str, list[dict[str, Any]]]:
    """The splits' rows as the stage's documentation has them, joined in plain Python."""
    of = {
        name: {row[key]: row for row in rows[name]}
        for name, key in {
            "prompts": "prompt_id",
            "responses": "response_id",
            "scores": "response_id",
            "pairs": "pair_id",
            "clusters": "pair_id",
        }.items()
    }
    kept = [row for row in rows["allocation"] if row["kept"]]
    names = {row["prompt_id"] for row in kept}
    drawn = sorted(names, key=lambda name: lot(config.seed, "export", name))
    test = set(drawn[: round(config.test_share * len(drawn))])
    sides = [of["pairs"][row["pair_id"]][f"{side}_id"] for row in kept for side in SIDES]
    criteria = {one["name"] for name in sides for one in of["scores"][name]["criteria"] or ()}
    reasons = any(of["scores"][name]["rationale"] for name in sides)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for row in sorted(kept, key=lambda row: row["pair_id"]):
        pair, place = of["pairs"][row["pair_id"]], of["clusters"][row["pair_id"]]
        prompt = of["prompts"][row["prompt_id"]]
        made = {name: row[name] for name in ("pair_id", "prompt_id", "depth")}
        made |= {name: pair[name] for name in ("margin", "p_chosen")}
        made |= {name: place[name] for name in ("cluster", "usefulness", "informativeness")}
        made |= {name: prompt[name] for name in ("prompt", "topic", "source")}
        made["split"] = "test" if row["prompt_id"] in test else "train"
        for side in SIDES:
            answer, said = (of[table][pair[f"{side}_id"]] for table in ("responses", "scores"))
            made[side] = [{"role": "assistant", "content": answer["text"]}]
            made[f"author_{side}"] = answer["author"]
            made[f"score_{side}"] = pair[f"score_{side}"]
            if criteria:
                points = {one["name"]: one["points"] for one in said["criteria"] or ()}
                cell = {name: points.get(name) for name in criteria}
                made[f"criteria_{side}"] = cell if points else None
            if reasons and config.rationales:
                made[f"rationale_{side}"] = said["rationale"]
        splits[made["split"]].append(made)
    return splits


SIDES = ("chosen", "rejected")

SHAPES = st.builds(
    Shape,
    words=st.lists(st.integers(0, 5), min_size=4, max_size=4).map(tuple),
    pairs=st.lists(st.sampled_from([(1, 0), (2, 0), (3, 0), (3, 2)]), unique=True).map(tuple),
    kept=st.integers(0, 3),
    criteria=st.sampled_from([(), (), ("honesty",), ("honesty", "help")]),
    reason=st.sampled_from(["", "so"]),
)


def with_a_kept_pair(shapes: list[Shape]) -> bool:
    return any(min(shape.kept, len(shape.pairs)) for shape in shapes)


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=12).filter(with_a_kept_pair),
    config=st.builds(
        ExportConfig,
        test_share=st.sampled_from([0.0, 0.2, 0.5]),
        rationales=st.booleans(),
        seed=st.integers(0, 9),
    ),
    prompts=st.integers(1, 5),
    piece=st.integers(1, 9),
)
def test_rows_and_facts_are_those_of_whole_tables(tmp_path_factory, shapes, config, prompts, piece):
    folder, rows = tmp_path_factory.mktemp("export"), rows_of(shapes)
    draft = Draft(folder / "out", "dataset", export.schema(config), artifacts(folder, rows))
    draft.folder.mkdir()
    in_pieces(draft.inputs, piece)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "PROMPTS", prompts)
        export.write_dataset(draft, config)
    made = expected(rows, config)
    files = [f"dataset/{name}.parquet" for name in ("train", "test") if made[name]]
    assert draft.table_files == files
    for file in files:
        table = pq.ParquetFile(draft.folder / file).read()
        own = made[file.removeprefix("dataset/").removesuffix(".parquet")]
        assert table == pa.Table.from_pylist(own, draft.schema)
        assert set(table.column_names) == set(own[0])
    check_facts(draft.facts, [*made["train"], *made["test"]], rows)


def in_pieces(inputs: dict[str, Artifact], rows: int) -> None:
    """Have the tables come in pieces of so many rows, as those of any length come in thousands."""
    for artifact in inputs.values():
        artifact.batches = partial(pieces, artifact.table, artifact.rows, rows)


def pieces(table: Callable[..., pa.Table], count: int, rows: int, columns: list[str]) -> Any:
    return (table(columns).slice(start, rows) for start in range(0, count, rows))


def check_facts(facts: dict[str, Any], made: list[dict[str, Any]], rows: Rows) -> None:
    depth = Counter(row["prompt_id"] for row in made)
    assert facts["pairs"] == len(made)
    assert facts["prompts"] == len(depth)
    assert facts["splits"] == Counter(row["split"] for row in made)
    assert facts["depths"] == {str(k): v for k, v in sorted(Counter(depth.values()).items())}
    assert facts["pool"] == len(rows["pairs"])
    assert facts["mean_margin"] == pytest.approx(
        statistics.mean(r["margin"] for r in made), abs=1e-4
    )
    text = {row["response_id"]: len(row["text"]) for row in rows["responses"]}
    kept = {row["pair_id"] for row in made}
    for name, own in {
        "candidates": rows["pairs"],
        "kept": [row for row in rows["pairs"] if row["pair_id"] in kept],
    }.items():
        ratios = [text[row["chosen_id"]] / text[row["rejected_id"]] for row in own]
        assert facts["lengths"][name]["pairs"] == len(own)
        assert facts["lengths"][name]["chosen_longer"] == sum(ratio > 1 for ratio in ratios)
        assert facts["lengths"][name]["median_ratio"] == round(statistics.median(ratios), 3)


def test_a_table_that_is_not_in_the_order_of_prompts_is_no_input(tmp_path):
    rows = rows_of(list(many(40)))
    rows["scores"][3:5] = rows["scores"][5:2:-2]
    rows["responses"].append(rows["responses"].pop(0))
    draft = Draft(tmp_path, "dataset", export.schema(ExportConfig()), artifacts(tmp_path, rows))
    with pytest.raises(AssertionError, match="responses is not sorted by prompts"):
        export.write_dataset(draft, ExportConfig())
    assert not list(tmp_path.glob("dataset/*"))


def exported(folder: Path, inputs: dict[str, Any], config: ExportConfig, **how: Any) -> Draft:
    """The dataset and its formats, on an engine."""
    folder.mkdir(exist_ok=True)
    draft = Draft(folder, "dataset", export.schema(config), inputs, "export")
    draft.engine = engine_of(Runtime(folder=str(folder), **how))
    export.write_formats(draft, config, export.write_dataset(draft, config))
    return draft


def contents(draft: Draft) -> dict[str, str]:
    """The digests of all files but of those that go when it is finished."""
    return {
        str(path.relative_to(draft.folder)): disk.sha256(path)
        for path in draft.folder.rglob("*")
        if path.is_file() and RESUMED not in path.parts
    }


def stored(folder: Path, model: Path, prompts: int) -> dict[str, Any]:
    """Inputs of so many prompts, with the tokenizer of a model."""
    (folder / "policy").mkdir(parents=True)
    pointer = {"model": str(model), "revision": ""}
    (folder / "policy" / "model.json").write_text(json.dumps(pointer))
    found: dict[str, Any] = artifacts(folder, rows_of(list(many(prompts))))
    return found | {"policy": SimpleNamespace(folder=folder / "policy")}


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(side_by_side, "PROMPTS", 3)


FORMATS = ExportConfig(formats=ALL, max_length=60)


def test_texts_measured_before_an_interruption_are_not_measured_again(
    tmp_path, qwen, monkeypatch, small_parts
):
    inputs = stored(tmp_path, qwen, 10)
    whole = exported(tmp_path / "whole", inputs, FORMATS)
    assert len(list(whole.folder.rglob("measured-*.parquet"))) == 4
    counts: list[int] = []
    measure = Target.measure

    def failing(self: Target, batch: Any) -> None:
        if len(counts) == 2:
            raise OSError("crash")
        counts.append(len(batch))
        measure(self, batch)

    monkeypatch.setattr(Target, "measure", failing)
    with pytest.raises(OSError, match="crash"):
        exported(tmp_path / "broken", inputs, FORMATS)
    counts.clear()
    monkeypatch.setattr(Target, "measure", lambda *own: (counts.append(0), measure(*own))[1])
    shutil.rmtree(tmp_path / "broken" / "dataset")
    again = exported(tmp_path / "broken", inputs, FORMATS)
    assert len(counts) == 2, "the parts that were not finished"
    assert (contents(again), again.facts) == (contents(whole), whole.facts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"engine": "processes", "processes": 2}, {"engine": "ray", "processes": 2}]
)
def test_any_engine_writes_the_same_bytes(tmp_path, qwen, small_parts, how):
    if how["engine"] == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    inputs = stored(tmp_path, qwen, 10)
    here = exported(tmp_path / "here", inputs, FORMATS)
    there = exported(tmp_path / "there", inputs, FORMATS, **how)
    assert contents(there) == contents(here)
    assert there.facts == here.facts


def test_what_was_measured_of_other_responses_is_refused(tmp_path, qwen):
    inputs = stored(tmp_path, qwen, 2)
    draft = exported(tmp_path / "first", inputs, ExportConfig())
    (part,) = draft.folder.rglob("measured-*.parquet")
    rows = pq.ParquetFile(part).read()
    target: Any = None
    with pytest.raises(AssertionError, match="what was measured is not of"):
        measuring.set_tokens([], rows, target, "break")


MEASURE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from bpo_data import streaming
from bpo_data.components.exporters import shuffling
from stored import SCHEMAS, finished
streaming.GROUP_BYTES, shuffling.HELD = 2**22, 512  # full at either size
from test_export_streams import ExportConfig, SimpleNamespace, exported
folder, formats = Path(sys.argv[1]), sys.argv[2].split()
inputs = {name: finished(folder / name, name) for name in SCHEMAS}
inputs["policy"] = SimpleNamespace(folder=folder / "policy")
exported(folder / "out", inputs, ExportConfig(formats=formats))
(line,) = [one for one in Path("/proc/self/status").open() if one.startswith("VmHWM")]
print(int(line.split()[1]) // 1024)  # getrusage would tell of the parent before the fork
"""


def peak(folder: Path, formats: list[str]) -> int:
    """MB of a process that exports what is stored in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), " ".join(formats)],
        capture_output=True, text=True, env=environment(), timeout=600, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("formats", [[], ["openrlhf", "axolotl", "kto", "listwise"]])
def test_memory_does_not_grow_with_rows(tmp_path, qwen, formats):
    """40,000 responses against 8,000: what is read or written at once is the same."""
    peaks = []
    for prompts in (1000, 5000):
        stored(tmp_path / str(prompts), qwen, prompts)
        peaks.append(peak(tmp_path / str(prompts), formats))
    assert peaks[1] < 1.1 * peaks[0], peaks
