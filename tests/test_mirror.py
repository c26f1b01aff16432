"""A mirror: what one machine made, another fetches; a copy counts when it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from helpers import TINY

from bpo_data import disk
from bpo_data.artifacts import MANIFEST, Artifact, Draft
from bpo_data.engines import at
from bpo_data.errors import UserError
from bpo_data.mirror import Mirror, version
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.command import Command
from bpo_data.pipelines.planning import plan
from bpo_data.pipelines.running import Run
from bpo_data.pipelines.saying import Voice
from bpo_data.shelf import FORMAT, Shelf
from bpo_data.tables import columns
from bpo_data.work import Work

SCHEMA = columns(n=pa.int32())
WORK = Work("load", 1, {"k": 3}, {})


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A folder of its own in the memory of this process."""
    return f"memory://{request.node.name}"


def make(folder: Path, page: str = "made at noon") -> Artifact:
    """In two parts, with a folder and a page that no digest covers."""

    def run(draft: Draft) -> None:
        rows = pa.table({"n": pa.array([1, 2], pa.int32())})
        draft.map_parts(rows, at(lambda part: part), 1)
        draft.file("model/config.json").write_text("{}")
        draft.view("page.html").write_text(page)

    return Shelf(folder).make(WORK, "numbers", SCHEMA, {}, run)


def place_of(mirror: Mirror, artifact: Artifact, file: str) -> str:
    text = (artifact.folder / MANIFEST).read_bytes()
    return f"{mirror.system[1]}/{WORK.name}/{version(text)}/{file}"


def test_what_is_sent_is_fetched_byte_for_byte(tmp_path, url):
    sent = make(tmp_path / "here")
    mirror = Mirror(url)
    assert mirror.fetch(WORK.name, tmp_path / "there") is None
    assert mirror.send(sent)
    assert not mirror.send(sent), "it is there"
    (tmp_path / "there" / f"{WORK.name}.partial").mkdir(parents=True)
    found = mirror.fetch(WORK.name, tmp_path / "there")
    assert Shelf(tmp_path / "there").find(WORK) is not None
    assert (found.digest, found.table()) == (sent.digest, sent.table())
    names = {path.relative_to(sent.folder) for path in sent.folder.rglob("*") if path.is_file()}
    for name in names:
        assert (found.folder / name).read_bytes() == (sent.folder / name).read_bytes()
    assert [path.name for path in (tmp_path / "there").iterdir()] == [WORK.name]


def test_a_copy_without_its_manifest_is_none(tmp_path, url):
    mirror = Mirror(url)
    mirror.send(make(tmp_path / "here"))
    system, root = mirror.system
    system.rm(f"{root}/{WORK.name}/{MANIFEST}")
    assert mirror.fetch(WORK.name, tmp_path / "there") is None
    assert mirror.send(make(tmp_path / "again")), "it is sent anew"


def test_a_changed_file_is_refused_and_nothing_is_kept(tmp_path, url):
    mirror = Mirror(url)
    sent = make(tmp_path / "here")
    mirror.send(sent)
    system, _ = mirror.system
    place = place_of(mirror, sent, "model/config.json")
    system.pipe_file(place, b"{x")
    with pytest.raises(UserError, match="is not what was sent"):
        mirror.fetch(WORK.name, tmp_path / "there")
    assert Shelf(tmp_path / "there").find(WORK) is None
    assert not list((tmp_path / "there").rglob("config.json"))
    system.pipe_file(place, b"{}")
    assert mirror.fetch(WORK.name, tmp_path / "there").digest == sent.digest


def test_a_fetch_that_is_cut_off_leaves_nothing_that_is_taken_for_a_finished_part(
    tmp_path, url, monkeypatch
):
    sent = make(tmp_path / "here")
    mirror = Mirror(url)
    mirror.send(sent)
    system, _ = mirror.system
    whole = type(system).get_file

    def killed(self: object, place: str, path: str) -> None:
        whole(self, place, path)
        Path(path).write_bytes(Path(path).read_bytes()[:9])
        raise KeyboardInterrupt

    there = tmp_path / "there"
    finished = there / f"{WORK.name}.partial" / "numbers-00000.parquet"
    disk.write_parquet(sent.read("numbers-00000.parquet"), finished)
    monkeypatch.setattr(type(system), "get_file", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.fetch(WORK.name, there)
    assert finished.exists(), "parts that were made here stay until all is fetched"
    assert make(there).table() == sent.table(), "made here, with the mirror gone"


def test_two_machines_that_send_at_the_same_time_never_mix_their_files(tmp_path, url, monkeypatch):
    one, two = (make(tmp_path / name, page=name) for name in ("one", "two"))
    mirror = Mirror(url)
    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "manifest", lambda self, name: None)  # each before the other
        assert mirror.send(one)
        assert mirror.send(two)
    for last in (one, two):
        text = (last.folder / MANIFEST).read_bytes()
        mirror.system[0].pipe_file(f"{mirror.system[1]}/{WORK.name}/{MANIFEST}", text)
        found = mirror.fetch(WORK.name, tmp_path / f"from {last.folder.parent.name}")
        assert (found.folder / "page.html").read_text() == last.folder.parent.name


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "model/../../evil"])
def test_names_outside_the_folder_are_refused(tmp_path, url, name):
    mirror = Mirror(url)
    system, root = mirror.system
    text = json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}})
    system.pipe_file(f"{root}/{WORK.name}/{MANIFEST}", text.encode())
    with pytest.raises(UserError, match="names files outside its folder"):
        mirror.fetch(WORK.name, tmp_path)


def test_an_artifact_of_a_newer_version_is_refused(tmp_path, url):
    mirror = Mirror(url)
    system, root = mirror.system
    text = json.dumps({"format": FORMAT + 1, "files": {}})
    system.pipe_file(f"{root}/{WORK.name}/{MANIFEST}", text.encode())
    for ask in (mirror.manifest, lambda name: mirror.fetch(name, tmp_path)):
        with pytest.raises(UserError, match=f"has format {FORMAT + 1}; .*Install a newer bpo_data"):
            ask(WORK.name)


def test_what_is_no_manifest_and_what_does_not_answer_are_said_in_a_line(
    tmp_path, url, monkeypatch
):
    mirror = Mirror(url)
    system, root = mirror.system
    system.pipe_file(f"{root}/{WORK.name}/{MANIFEST}", b"[1]")
    with pytest.raises(UserError, match="is no manifest"):
        mirror.manifest(WORK.name)

    def refuse(*_: object) -> None:
        raise RuntimeError("AccessDenied:\n no")

    monkeypatch.setattr(type(system), "cat_file", refuse)
    with pytest.raises(UserError, match="does not do what it is asked: AccessDenied: no"):
        mirror.manifest(WORK.name)
    with pytest.raises(UserError, match=r"runtime.mirror=nope://x cannot be used"):
        Mirror("nope://x").system  # noqa: B018  (asking is what fails)


def test_a_second_machine_makes_nothing(tmp_path, url, capsys):
    def asked(folder: str, stage: str = "stage=select") -> settings.Asked:
        words = [stage, f"runtime.folder={tmp_path / folder}", f"runtime.mirror={url}", *TINY]
        return settings.read(words)

    first = Run(asked("one"), Voice("json"))
    first.go()
    planned = Voice("json")
    plan(Command(asked("two")), planned)
    assert [one.state for one in planned.answer["stages"]] == ["mirror"] * 3
    assert "3 of 3 stages would be fetched" in planned.answer["notes"][0]
    assert not (tmp_path / "two").exists(), "a plan fetches nothing"
    second = Run(asked("two"), Voice("json"))
    second.go()
    assert [row["verb"] for row in second.voice.answer["stages"]] == ["fetched"] * 3
    assert [one.digest for one in second.made.values()] == [
        one.digest for one in first.made.values()
    ]
    system, root = fsspec.core.url_to_fs(url)
    system.rm(root, recursive=True)
    again = Run(asked("two"), Voice("json"))
    again.go()
    assert [row["verb"] for row in again.voice.answer["stages"]] == ["kept"] * 3
    assert len(system.ls(root)) == 3, "what is kept and not there is sent"


def test_a_place_that_is_not_there_is_said_in_a_line(tmp_path, url, monkeypatch):
    mirror = Mirror(url)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(type(mirror.system[0]), "put_file", gone)
    with pytest.raises(UserError, match="does not do what it is asked: The specified bucket"):
        mirror.send(make(tmp_path))
