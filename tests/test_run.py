"""The whole pipeline as a user runs it: made once, kept after, whole whatever kills it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forking import fork
from helpers import ROOT, TINY, environment, run, run_from_scratch, start

from bpo_data.pipelines.steps import needed
from bpo_data.stages import MAKER, STAGES


def manifests(folder: Path) -> dict[str, dict]:
    """Stage -> manifest; a stage with two artifacts fails the test that asks."""
    found = {}
    for path in folder.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        assert manifest["stage"] not in found, f"two artifacts of {manifest['stage']}"
        found[manifest["stage"]] = manifest
    return found


def digests(folder: Path) -> dict[str, str]:
    return {stage: manifest["digest"] for stage, manifest in manifests(folder).items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    result = run_from_scratch("stage=all", f"runtime.folder={folder}", *TINY)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(STAGES) + 1, result.stdout
    return folder


def table(folder: Path, stage: str) -> list[dict]:
    (path,) = folder.glob(f"{stage}-*")
    manifest = json.loads((path / "manifest.json").read_text())
    return [row for name in manifest["table"] for row in pq.read_table(path / name).to_pylist()]


def test_every_stage_leaves_its_artifact_and_nothing_half_done(unbroken):
    assert set(manifests(unbroken)) == set(STAGES)
    assert not list(unbroken.glob("*.partial"))
    assert not list(unbroken.rglob("*.writing"))
    assert not list(unbroken.rglob("*.bin")), "a pickle"


def test_a_second_run_makes_nothing_and_loads_nothing_heavy(unbroken):
    before = times(unbroken)
    code = (
        "import sys; from bpo_data.pipelines.run import main; status = main(sys.argv[1:]);"
        "print('HEAVY', sorted({'torch', 'trl', 'faiss', 'sklearn'} & set(sys.modules)));"
        "sys.exit(status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "stage=all", f"runtime.folder={unbroken}", *TINY],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-2]] == [[stage, "kept"] for stage in STAGES]
    assert lines[-1] == "HEAVY []"
    assert times(unbroken) == before


def times(runs: Path) -> dict[Path, int]:
    """When each file was written, but for the notes on what was used."""
    written = (path for path in runs.rglob("*") if path.is_file() and path.parent.name != ".used")
    return {path: path.stat().st_mtime_ns for path in written}


def test_the_last_line_names_dataset_report_and_win_rate(unbroken):
    result = run("stage=all", f"runtime.folder={unbroken}", *TINY)
    last = result.stdout.splitlines()[-1]
    parts = last.split("   ")
    assert Path(parts[0].removeprefix("dataset ")).joinpath("train.parquet").is_file()
    assert Path(parts[1].removeprefix("report ")).is_file()
    assert parts[2].startswith("win rate ")


def test_the_budget_is_exact_and_every_invariant_of_depth_holds(unbroken):
    dataset, pairs = table(unbroken, "export"), table(unbroken, "pair")
    responses = {row["response_id"]: row for row in table(unbroken, "augment")}
    made = {row["pair_id"]: row for row in pairs}
    budget = manifests(unbroken)["allocate"]["facts"]["budget"]
    assert len(dataset) == budget
    assert len({row["pair_id"] for row in dataset}) == budget
    depth = Counter(row["prompt_id"] for row in dataset)
    assert all(1 <= count <= 6 for count in depth.values())
    assert set(depth) == {row["prompt_id"] for row in pairs}
    for row in dataset:
        pair = made[row["pair_id"]]
        assert row["depth"] == depth[row["prompt_id"]]
        assert row["score_chosen"] > row["score_rejected"]
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"])
        assert row["chosen"] != row["rejected"]
        assert row["chosen"][0]["content"] == responses[pair["chosen_id"]]["text"]
        assert row["rejected"][0]["content"] == responses[pair["rejected_id"]]["text"]


def test_no_prompt_is_in_both_splits_nor_in_two_uses(unbroken):
    dataset = table(unbroken, "export")
    by_split = {
        split: {row["prompt_id"] for row in dataset if row["split"] == split}
        for split in ("train", "test")
    }
    assert by_split["test"]
    assert not by_split["train"] & by_split["test"]
    held_out = {row["prompt_id"] for row in table(unbroken, "evaluate")}
    assert held_out
    assert not held_out & {row["prompt_id"] for row in dataset}


def test_load_dataset_reads_the_folder_and_the_card(unbroken, tmp_path):
    import datasets

    (folder,) = unbroken.glob("export-*/dataset")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    written = table(unbroken, "export")
    assert set(loaded) == {"train", "test"}
    assert sum(map(len, loaded.values())) == len(written)
    for split, rows in loaded.items():
        wanted = [row for row in written if row["split"] == split]
        assert rows["pair_id"][:] == [row["pair_id"] for row in wanted]
        assert rows["chosen"][:] == [row["chosen"] for row in wanted]


def test_the_card_s_settings_reproduce_the_dataset(unbroken, tmp_path):
    (card,) = unbroken.glob("export-*/dataset/README.md")
    recipe = tmp_path / "again.yaml"
    recipe.write_text(card.read_text().split("```json\n")[1].split("\n```")[0])
    result = run("stage=export", f"recipe={recipe}", f"runtime.folder={unbroken}")
    assert result.returncode == 0, result.stderr
    assert {line.split()[1] for line in result.stdout.splitlines()[:-1]} == {"kept"}


def test_datasets_does_not_take_one_export_for_another(unbroken, tmp_path):
    import datasets

    (folder,) = unbroken.glob("export-*")
    other = run("stage=export", f"runtime.folder={unbroken}", *TINY, "export.test_share=0.4")
    assert other.returncode == 0, other.stderr
    (second,) = set(unbroken.glob("export-*")) - {folder}
    sizes = [
        len(datasets.load_dataset(str(path / "dataset"), cache_dir=str(tmp_path))["train"])
        for path in (folder, second)
    ]
    assert sizes == [
        pq.read_metadata(path / "dataset" / "train.parquet").num_rows for path in (folder, second)
    ]
    assert sizes[0] != sizes[1]
    shutil.rmtree(second)


def test_a_dpo_trainer_takes_the_dataset_as_it_is(unbroken, tmp_path):
    import datasets
    import torch
    from trl import DPOConfig, DPOTrainer

    from bpo_data.policy import load_policy

    torch.set_num_threads(1)
    (folder,) = unbroken.glob("export-*/dataset")
    (model,) = unbroken.glob("sft-*/model")
    policy = load_policy(str(model), None, "cpu", "float32")
    trainer = DPOTrainer(
        model=policy.model,
        ref_model=load_policy(str(model), None, "cpu", "float32").model,
        args=DPOConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
            bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        ),
        train_dataset=datasets.load_dataset(
            str(folder), split="train", cache_dir=str(tmp_path / "cache")
        ),
        processing_class=policy.tokenizer,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_report_is_one_closed_page_with_the_true_counts(unbroken):
    (page,) = unbroken.glob("report-*/report.html")
    text = page.read_text()
    facts = manifests(unbroken)["export"]["facts"]
    assert f"{facts['pairs']:,} preference pairs for {facts['prompts']:,} prompts" in text
    assert "://" not in text, "the page asks for something outside"


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_another_depth_rule_repeats_no_measurement(unbroken, kind):
    arguments = ["stage=allocate", f"runtime.folder={unbroken}", *TINY, f"allocate.kind={kind}"]
    result = run(*arguments)
    verbs = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert verbs.pop("allocate") == "made"
    assert set(verbs.values()) == {"kept"}
    assert f"allocate   running: kind margin -> {kind}" in result.stderr
    (path,) = (
        path.parent
        for path in unbroken.glob("allocate-*/manifest.json")
        if json.loads(path.read_text())["settings"]["kind"] == kind
    )
    shutil.rmtree(path)


def test_plan_says_what_would_run_and_does_nothing(unbroken, tmp_path):
    result = run("plan=true", f"runtime.folder={unbroken}", *TINY, "cluster.k=3")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}
    assert lines["pair"].startswith("kept ")
    assert lines["cluster"].startswith("to run ")
    assert lines["cluster"].endswith("  k 0 -> 3")
    assert lines["allocate"].startswith("waits ")
    assert lines["allocate"].endswith("  after cluster")
    assert run("plan=true", f"runtime.folder={tmp_path / 'new'}", *TINY).returncode == 0
    assert not (tmp_path / "new").exists()


def test_a_stage_brings_up_to_date_what_it_needs_and_no_more():
    assert needed(["select"]) == ["load", "embed", "select"]
    assert needed(["pair"]) == [
        "load", "embed", "select", "sft", "augment", "score", "gradients", "pair"
    ]  # fmt: skip
    assert needed(list(STAGES)) == list(STAGES)
    order = list(STAGES)
    for name, stage in STAGES.items():
        for used in (*stage.needs, *stage.also):
            assert order.index(MAKER[used]) < order.index(name)


KILLER = """
import os, pathlib, signal, sys
import bpo_data.disk as disk
from bpo_data.pipelines.run import main
from bpo_data.streaming import Growing
points, stages = sys.argv[1].split(","), sys.argv[2].split(",")

def kill_at(path, stage):
    if f"/{stage}-" in str(path) and ".partial" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)

def after_tables(stage):
    write, close = disk.write_parquet, Growing.close

    def written(table, path, *seal):
        write(table, path, *seal)
        kill_at(path, stage)

    def closed(growing):
        done = close(growing)
        kill_at(growing.path, stage)
        return done

    disk.write_parquet, Growing.close = written, closed

def before_manifests(stage):
    write = disk.write_bytes

    def written(content, path, *seal):
        if path.name == "manifest.json":
            kill_at(path, stage)
        write(content, path, *seal)

    disk.write_bytes = written

for place, stage in enumerate(stages):
    child = os.fork()
    if not child:
        (after_tables if points[place % 2] == "table" else before_manifests)(stage)
        os._exit(main(sys.argv[3:]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [path.name for path in pathlib.Path(sys.argv[3].partition("=")[2]).glob(f"{stage}-*")]
    print("killed", stage, code, *left, flush=True)
"""
"""Runs the command line once for each stage, in processes of their own. Each sends itself SIGKILL
in its stage: right after its first table file is on disk, or at the last moment, when all is
written but the manifest; stages take the two in turn. Prints what the stage left."""


@pytest.mark.parametrize(
    "points", ["table,manifest", pytest.param("manifest,table", marks=pytest.mark.slow)]
)
def test_a_run_killed_in_every_stage_ends_like_an_unbroken_one(unbroken, tmp_path, points):
    arguments = [f"runtime.folder={tmp_path}", "stage=all", *TINY]
    with fork(["-c", KILLER, points, ",".join(STAGES), *arguments], environment()) as process:
        out, error = process.communicate(timeout=240)
    told = [line.split()[1:] for line in out.splitlines() if line.startswith("killed")]
    assert [stage for stage, *_ in told] == list(STAGES), error
    for stage, code, *left in told:
        assert int(code) == -signal.SIGKILL, f"{stage}: {error}"
        assert [name for name in left if name.endswith(".partial")]
        assert not [name for name in left if not name.endswith(".partial")]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path) == digests(unbroken)


SMALL_PARTS = """
import os, signal, sys
import bpo_data.disk as disk
from bpo_data.stages import augment, gradients
augment.PART_ROWS = gradients.PART_ROWS = 30
stage = sys.argv[1]
write = disk.write_parquet

def writing(table, path, *seal):
    write(table, path, *seal)
    if f"/{stage}-" in str(path) and path.name.endswith("-00001.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)

disk.write_parquet = writing
from bpo_data.pipelines.run import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_stage_killed_between_its_parts_goes_on_with_those_it_has(tmp_path):
    def status(stage: str, folder: Path) -> int:
        arguments = ["stage=gradients", f"runtime.folder={folder}", *TINY]
        with fork(["-c", SMALL_PARTS, stage, *arguments], environment()) as process:
            process.communicate(timeout=240)
        return process.wait()

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for stage in ("augment", "gradients"):
        assert status(stage, broken) == -signal.SIGKILL
        (partial,) = broken.glob(f"{stage}-*.partial")
        parts = sorted(path.name for path in partial.glob("*.parquet"))
        assert [name.rpartition("-")[2] for name in parts] == ["00000.parquet", "00001.parquet"]
    assert status("none", broken) == 0
    assert status("none", whole) == 0
    assert len(list(whole.glob("gradients-*/gradients-*.parquet"))) > 3
    assert digests(broken) == digests(whole)


@pytest.mark.parametrize("threads", [2])
def test_threads_change_no_row_of_what_no_model_computes(unbroken, tmp_path, threads):
    arguments = ["stage=select", f"runtime.folder={tmp_path}", *TINY, f"runtime.threads={threads}"]
    assert run(*arguments).returncode == 0
    theirs = digests(tmp_path)
    assert theirs == {stage: digests(unbroken)[stage] for stage in theirs}


def test_a_rule_that_breaks_its_word_is_named(unbroken, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from bpo_data.components.allocators import Choice\n"
        "class First:\n"
        "    def __call__(self, pool, budget, floor, cap, seed):\n"
        "        return Choice(list(range(budget)), ['mine'] * budget)\n"
        "class Wild(First):\n"
        "    def __call__(self, pool, budget, floor, cap, seed):\n"
        "        return Choice([10**6 + n for n in range(budget)], ['mine'] * budget)\n"
    )
    monkeypatch.setattr("helpers.ROOT", f"{ROOT}{os.pathsep}{tmp_path}")
    for name, words in (("First", "left a prompt without a pair"), ("Wild", "does not have")):
        result = run("stage=allocate", f"runtime.folder={unbroken}", *TINY,
                     f"allocate.kind=mine:{name}")  # fmt: skip
        assert result.returncode == 2
        assert f"allocate.kind=mine:{name} " in result.stderr
        assert words in result.stderr
    for partial in unbroken.glob("*.partial"):
        shutil.rmtree(partial)


def test_two_runs_at_once_share_the_work_and_corrupt_nothing(tmp_path, unbroken):
    arguments = ["stage=select", f"runtime.folder={tmp_path}", *TINY]
    processes = [start(*arguments) for _ in range(3)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    made = Counter(tuple(line.split()[:2]) for output, _ in outputs for line in output.splitlines())
    for stage in ("load", "embed", "select"):
        assert made[stage, "made"] == 1, made
        assert made[stage, "kept"] == 2, made
    theirs = digests(tmp_path)
    assert theirs == {stage: digests(unbroken)[stage] for stage in theirs}


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small file system needs root")
def test_a_full_disk_is_one_line_and_the_run_goes_on_after(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        arguments = ("stage=load", f"runtime.folder={small}/runs", *TINY)
        arguments += ("load.options.seed_prompts=3000",)
        result = run(*arguments)
        assert result.returncode == 2, result.stderr
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        assert run(*arguments).returncode == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
