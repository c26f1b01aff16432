"""Plan, status and clean: true to what is on disk, and doing no more than they say."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, run, start
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.artifacts import Artifact
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines import run as command_line
from bpo_data.pipelines import tree
from bpo_data.pipelines.clean import Removable, removable, remove
from bpo_data.pipelines.config import Config
from bpo_data.pipelines.outlook import Standing
from bpo_data.pipelines.running import link
from bpo_data.pipelines.saying import plain
from bpo_data.pipelines.steps import direct, needed, steps
from bpo_data.shelf import Shelf
from bpo_data.stages import STAGES
from bpo_data.stages.rounds import RoundsConfig
from bpo_data.words import ago, size

UP_TO = "stage=pair"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with everything up to the pairs."""
    folder = tmp_path_factory.mktemp("planning") / "runs"
    result = run(UP_TO, f"runtime.folder={folder}", *TINY)
    assert result.returncode == 0, result.stderr
    return folder


def asked(runs: Path, *words: str) -> dict:
    """The JSON answer to a command on that folder, which must be all of stdout."""
    result = run(f"runtime.folder={runs}", *TINY, *words, "format=json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def files(runs: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in runs.rglob("*") if path.is_file()}


def states(answer: dict) -> dict[str, str]:
    return {one["stage"]: one["state"] for one in answer["stages"]}


def test_a_plan_tells_kept_from_to_run_with_time_and_size_of_the_like(runs):
    before = files(runs)
    answer = asked(runs, "plan=true", "pair.per_prompt=4")
    assert files(runs) == before
    assert states(answer) == {
        **dict.fromkeys(needed(["score"]), "kept"),
        "gradients": "kept",
        "pair": "to run",
        **dict.fromkeys(("cluster", "allocate", "export", "train", "evaluate", "report"), "waits"),
    }
    rows = {one["stage"]: one for one in answer["stages"]}
    manifest = json.loads(next(runs.glob("pair-*/manifest.json")).read_text())
    assert rows["pair"]["why"] == "per_prompt 6 -> 4"
    size = sum(one["bytes"] for one in manifest["files"].values())
    assert rows["pair"]["seconds"] == pytest.approx(manifest["seconds"] * 4 / 6), "4 pairs for 6"
    assert rows["pair"]["bytes"] == round(size * 4 / 6)
    assert rows["cluster"]["seconds"] is None
    assert rows["score"]["folder"] == str(next(runs.glob("score-*")))
    (sums, *_) = answer["notes"]
    assert "7 of 14 stages would run" in sums
    assert "of this source: cluster, allocate, export, train, evaluate, report" in sums
    longer = {one["stage"]: one for one in asked(runs, "plan=true", "sft.steps=60")["stages"]}
    trained = json.loads(next(runs.glob("sft-*/manifest.json")).read_text())
    assert longer["sft"]["seconds"] == pytest.approx(2 * trained["seconds"]), "60 updates for 30"
    assert longer["gradients"]["seconds"] is not None
    other = asked(runs, "plan=true", "load.options.seed=9")["stages"]
    assert {one["seconds"] for one in other} == {None}, "another source says nothing of this one"


def test_status_shows_what_is_begun_held_and_beside(runs, tmp_path):
    pair = next(runs.glob("pair-*"))
    hidden = tmp_path / pair.name
    pair.rename(hidden)
    begun = runs / f"{pair.name}.partial"
    begun.mkdir()
    assert states(asked(runs, "stage=status"))["pair"] == "to run", "it left nothing to go on from"
    (begun / "pairs-00000.parquet").touch()
    try:
        assert states(asked(runs, "stage=status"))["pair"] == "begun"
        with open(runs / ".locks" / pair.name, "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = asked(runs, "stage=status")
    finally:
        shutil.rmtree(begun)
        hidden.rename(pair)
    assert states(held)["pair"] == "making"
    assert held["others"]["artifacts"] == 0, "the folder that is begun is of these settings"
    whole = asked(runs, "stage=status")
    assert states(whole)["pair"] == "kept"
    assert whole["bytes"] == sum(
        json.loads(path.read_text())["files"][name]["bytes"]
        for path in runs.glob("*/manifest.json")
        for name in json.loads(path.read_text())["files"]
    )


def test_clean_removes_what_no_run_used_and_nothing_else(runs, tmp_path):
    copy = tmp_path / "runs"
    os.system(f"cp -r {runs} {copy}")
    RequestStore(copy / "requests.sqlite").close()
    (copy / "my-notes").mkdir()
    (copy / "load-notes.txt").write_text("mine")
    for name in ("my-thesis.removed", "abc-0123456789ab.partial", "load-0123456789ab.removed.mine"):
        (copy / name).mkdir()
    (copy / "load-0123456789ab.removed").mkdir()  # of a clean that was killed
    for path in (*copy.glob(".used/*"), *copy.glob(".locks/*")):
        path.write_text("a run before the machine's last start")
    long_ago = time.time() - 40 * 86_400
    for path in (*copy.rglob("*"), *copy.glob("*")):
        os.utime(path, (long_ago, long_ago))
    again = run("stage=select", f"runtime.folder={copy}", *TINY)
    assert again.returncode == 0, again.stderr
    old = {path.name for path in copy.glob("*-*") if (path / "manifest.json").exists()}
    old -= {path.name for name in ("load", "embed", "select") for path in copy.glob(f"{name}-*")}

    before = files(copy)
    shown = run("stage=clean", f"runtime.folder={copy}")
    assert files(copy) == before, "nobody was there to agree"
    assert "Nothing was removed. clean.yes=true removes them." in shown.stdout
    assert all(name in shown.stdout for name in old)
    planned = run("stage=clean", f"runtime.folder={copy}", "clean.yes=true", "plan=true")
    assert planned.returncode == 0
    assert files(copy) == before

    held = next(copy.glob("score-*"))
    with open(copy / ".locks" / held.name, "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("stage=clean", f"runtime.folder={copy}", "clean.yes=true", "format=json")
    assert set(json.loads(done.stdout)["removed"]) == old - {held.name}
    left = {path.name for path in copy.iterdir() if not path.name.startswith(".")}
    assert left >= {"requests.sqlite", "my-notes", "load-notes.txt", held.name}
    assert left >= {"my-thesis.removed", "abc-0123456789ab.partial"}
    assert "load-0123456789ab.removed" not in left
    assert not left & (old - {held.name})
    kept = run("stage=select", f"runtime.folder={copy}", *TINY)
    assert kept.stdout.count(" kept ") == 3


def test_an_artifact_of_a_newer_version_is_one_line_and_status_goes_on(runs, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    path = next(copy.glob("score-*")) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    line = f"{path} has format 2; this version knows 1. Install a newer bpo_data"
    before = files(copy)
    for words in ((UP_TO,), (UP_TO, "plan=true"), ("stage=report",)):
        ended = run(*words, f"runtime.folder={copy}", *TINY)
        assert (ended.returncode, ended.stderr.count("bpo_data: ")) == (2, 1), ended.stderr
        assert line in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
    status = asked(copy, "stage=status")
    found = states(status)
    assert (found["augment"], found["score"], found["pair"]) == ("kept", "refused", "waits")
    (why,) = (one["why"] for one in status["stages"] if one["stage"] == "score")
    assert why.startswith(line)
    cleaned = run("stage=clean", f"runtime.folder={copy}")
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    changed = {path for path, when in files(copy).items() if before.get(path) != when}
    assert {Path(path).parent.name for path in changed} <= {".used", ".locks"}


def test_a_run_answers_in_json_too_and_leaves_links_to_its_results(runs):
    answer = asked(runs, UP_TO)
    assert answer["status"] == "done"
    assert [one["stage"] for one in answer["stages"]] == needed(["pair"])
    assert {one["verb"] for one in answer["stages"]} == {"kept"}
    assert all(Path(one["folder"]).is_dir() for one in answer["stages"])
    assert not (runs / "latest").exists(), "there is no dataset yet"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load.kindd=x",), "There is no setting load.kindd."),
        (("stage=clean", "clean.days=-1"), "clean.days=-1"),
        (("stage=status,load",), "status stands alone"),
    ],
)
def test_what_is_wrong_is_json_as_well(tmp_path, words, said):
    result = run(*words, "format=json", f"runtime.folder={tmp_path}")
    assert result.returncode == 2
    answer = json.loads(result.stdout)
    assert answer["status"] == "error"
    assert said in answer["errors"][0]
    assert f"bpo_data: {answer['errors'][0]}" in result.stderr


def test_another_format_is_refused():
    result = run("format=xml")
    assert result.returncode == 2
    assert "format=xml: choose text or json" in result.stderr


def standings(stages: list[str], **rounds: Any) -> dict[str, Standing]:
    """A standing a step of these stages, by its name."""
    config = Config()
    config.rounds = RoundsConfig(**rounds)
    found = steps(stages, config)
    return {one.name: Standing(one.stage, "waits", "", direct(one, found)) for one in found}


def test_every_stage_is_drawn_once_below_what_it_waits_for():
    rows = standings(list(STAGES))
    names = [name for _, name in tree.drawn(rows)]
    assert sorted(names) == sorted(STAGES)
    for name, row in rows.items():
        assert all(names.index(above) < names.index(name) for above in row.after)
    assert rows["augment"].after == ["select", "sft"], "not load, which both need"


@given(
    st.sets(st.sampled_from(list(STAGES)), min_size=1),
    st.integers(1, 3),
    st.sampled_from(["behaviour", "sft", "ema"]),
    st.sampled_from([0.0, 0.5]),
)
def test_any_choice_of_stages_and_rounds_is_drawn_once(chosen, count, reference, extrapolate):
    rows = standings(list(chosen), count=count, reference=reference, extrapolate=extrapolate)
    names = [name for _, name in tree.drawn(rows)]
    assert sorted(names) == sorted(rows)
    assert count > 1 or list(rows) == needed(list(chosen))


def test_sizes_and_times_are_in_the_unit_people_use():
    assert [size(n) for n in (0, 999, 1_000, 18_234_567, 10**13)] == [
        "0 B", "999 B", "1.0 kB", "18 MB", "10 TB",
    ]  # fmt: skip
    assert [ago(n) for n in (1, 60, 7_200, 86_400 * 40)] == [
        "1 second ago", "60 seconds ago", "2 hours ago", "40 days ago",
    ]  # fmt: skip


def test_the_document_holds_no_nan_which_is_no_json():
    assert plain({"a": float("nan"), "b": [Path("x"), (1, float("inf"))]}) == {
        "a": None,
        "b": ["x", [1, None]],
    }


def test_clean_leaves_what_a_run_is_using(tmp_path):
    shelf = Shelf(tmp_path)
    folder = tmp_path / "load-0123456789ab"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    with shelf.use(Artifact(folder, {}), "a run"):
        assert removable(shelf, 0) == []
        assert remove(shelf, [Removable(folder.name, 0, 0.0)], 0) == []
    assert [one.name for one in removable(shelf, 0)] == [folder.name]
    assert remove(shelf, [Removable(folder.name, 0, 0.0)], 1) == [], "it was used a moment ago"
    assert remove(shelf, [Removable(folder.name, 0, 0.0)], 0) == [folder.name]


def test_to_look_for_what_is_removable_writes_nothing(tmp_path):
    folder = tmp_path / "load-0123456789ab"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    assert len(removable(Shelf(tmp_path), 0)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_links_lead_to_one_run_alone(tmp_path):
    for name in ("dataset", "report.html"):
        (tmp_path / name).touch()
    latest = tmp_path / "latest"
    link(latest, [tmp_path / "dataset", tmp_path / "report.html"])
    assert {path.name: path.exists() for path in latest.iterdir()} == {
        "dataset": True,
        "report.html": True,
    }
    link(latest, [tmp_path / "dataset"])
    assert [path.name for path in latest.iterdir()] == ["dataset"]


def test_a_manifest_that_is_none_is_named(runs, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    (manifest,) = copy.glob("embed-*/manifest.json")
    manifest.write_text("{bad")
    status = {one["stage"]: one for one in asked(copy, "stage=status")["stages"]}
    assert status["embed"]["state"] == "refused"
    assert str(manifest) in status["embed"]["why"]
    for words in (("stage=embed",), ("plan=true",)):
        result = run(*words, f"runtime.folder={copy}", *TINY, "format=json")
        assert result.returncode == 2, result.stderr
        (said,) = json.loads(result.stdout)["errors"]
        assert str(manifest) in said
        assert "Remove the folder" in said


def test_a_traceback_leaves_a_document_too(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "answer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command_line.main(["format=json"])
    assert json.loads(capsys.readouterr().out) == {"status": "failed"}


def test_help_is_a_document_too(capsys):
    assert command_line.main(["--help", "format=json"]) == 0
    assert "stage=STAGES" in json.loads(capsys.readouterr().out)["help"]


def test_a_plan_names_a_push_that_waits_for_the_export(tmp_path):
    words = ("plan=true", "export.push_to_hub=a/b", f"runtime.folder={tmp_path}", *TINY)
    assert "would push to a/b once export is made" in run(*words).stdout


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    folder = f"runtime.folder={tmp_path}"
    shown = start("stage=select", folder, *TINY)
    shown.stdout.readline()
    shown.stdout.close()
    error = shown.stderr.read()
    assert shown.wait(60) == 0, error
    assert list(tmp_path.glob("select-*/manifest.json"))
