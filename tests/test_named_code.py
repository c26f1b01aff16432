"""A recipe runs no code, and a folder or a name that data brings leads nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bpo_data.components.reading import Columns, read
from bpo_data.errors import UserError
from bpo_data.pipelines import ablation, config, named_code
from bpo_data.policy import policy_location

CODE = {
    "load": "load: {kind: 'os:system', options: {command: touch it-ran}}",
    "run": "embed: {kind: 'subprocess:run', options: {args: [touch, it-ran]}}",
    "judge": "score: {kind: verifier, options: {function: 'own:trap'}}",
    "panel": "score: {kind: panel, options: {judges: [{kind: 'own:trap', options: {}}]}}",
    "format": "export: {formats: ['own:trap']}",
    "pick": "select: {pick: 'own:trap'}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where somebody's recipe lies beside a module of theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text("open('it-ran', 'w').close()\ntrap = print\n")
    return tmp_path


@pytest.mark.parametrize("name", CODE)
def test_a_recipe_that_names_code_is_refused_before_it_is_imported(folder, name):
    (folder / "theirs.yaml").write_text(CODE[name])
    with pytest.raises(UserError, match=r"recipe=theirs\.yaml names code that would run: ") as told:
        config.read(["recipe=theirs.yaml"])
    assert named_code.TRUSTED in str(told.value)
    assert not (folder / "it-ran").exists()


def test_an_arm_of_an_ablation_names_no_code_either(folder):
    arms = "{a: {allocate: {kind: 'own:trap'}}, b: {allocate.kind: 'own:trap'}}"
    (folder / "theirs.yaml").write_text(f"ablation: {{base: quickstart, arms: {arms}}}")
    with pytest.raises(UserError, match=r"ablation\.arms\.a\.allocate\.kind=own:trap"):
        ablation.read("theirs.yaml", ["recipe=theirs.yaml"])
    (folder / "base.yaml").write_text(CODE["pick"])
    (folder / "theirs.yaml").write_text("ablation: {base: base.yaml, arms: {a: {}, b: {}}}")
    with pytest.raises(UserError, match=r"recipe=base\.yaml names code that would run"):
        ablation.read("theirs.yaml", ["recipe=theirs.yaml"])
    assert not (folder / "it-ran").exists()


@pytest.mark.parametrize("by", ["environment", "command line"])
def test_code_that_the_user_names_runs(folder, monkeypatch, by):
    module = "from bpo_data.components.clusterers import SklearnKMeans as Own\n"
    (folder / "clusters_of_ours.py").write_text(module)
    (folder / "ours.yaml").write_text("cluster: {kind: 'clusters_of_ours:Own', k: 3}\n")
    words = ["recipe=ours.yaml", "load.kind=topics", "augment.client=replay"]
    if by == "environment":
        monkeypatch.setenv(named_code.TRUSTED, "another:One, clusters_of_ours:Own")
    else:
        words.append("cluster.kind=clusters_of_ours:Own")
    assert config.read(words).config.cluster.kind == "clusters_of_ours:Own"


def test_a_model_with_a_colon_in_its_name_is_no_code():
    values = {"score.options": {"model": "mistral:latest", "base_url": "http://localhost:1/v1"}}
    assert not list(named_code.named(values))


def rows(path: Path) -> list[str]:
    return [row.origin for row in read(str(path), Columns())]


def test_links_out_of_a_folder_are_refused_and_links_within_it_are_not(tmp_path):
    row = '{"prompt": "a"}\n'
    outside, data = tmp_path / "secrets.jsonl", tmp_path / "data"
    data.mkdir()
    outside.write_text(row)
    (data / "a.jsonl").write_text(row)
    (data / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "linked").symlink_to(data)
    assert rows(tmp_path / "linked") == ["a.jsonl:1", "b.jsonl:1"]
    (data / "c.jsonl").symlink_to(outside)
    for path in (data, data / "*.jsonl", tmp_path / "linked"):
        with pytest.raises(UserError, match=r"c\.jsonl is a link to .*secrets\.jsonl, outside"):
            rows(path)
    assert rows(data / "c.jsonl") == ["c.jsonl:1"], "named by the user"
    (data / "c.jsonl").unlink()
    (data / "more").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link to"):
        rows(data / "*/*.jsonl")


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "4f2a" / "data"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text('{"prompt": "a"}\n')
    (snapshot / "train.jsonl").symlink_to("../../../blobs/0123")
    assert rows(snapshot) == ["train.jsonl:1"]


@pytest.mark.parametrize(
    "content", ["[]", "5", "{", '{"model": 5, "revision": ""}', '{"model": "a"}']
)
def test_a_pointer_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json points to no model"):
        policy_location(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"model": "../m", "revision": ""}))
    assert policy_location(tmp_path) == ("../m", None)


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jsonl"))
    path.write_text('{"prompt": "a"}\n')
    for named in (path, tmp_path):
        with pytest.raises(UserError, match=r"is not UTF-8\. Rename the file"):
            rows(named)
