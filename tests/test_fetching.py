"""What a worker reads on a machine of its own: fetched once, checked, and cleared when unused."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bpo_data import checkpoints, fetching
from bpo_data.artifacts import Artifact, Draft
from bpo_data.engines import Place
from bpo_data.errors import UserError
from bpo_data.fetching import Cache, Copied, Own, fetched, own_cache, sources
from bpo_data.mirror import Mirror
from bpo_data.shelf import Shelf
from bpo_data.tables import columns
from bpo_data.work import Work

SCHEMA = columns(n=pa.int32())


def make(folder: Path, k: int = 3, words: str = "{}") -> Artifact:
    """An artifact with a model in it."""

    def run(draft: Draft) -> None:
        draft.write(pa.table({"n": pa.array([1, 2], pa.int32())}))
        draft.file("model/config.json").write_text(words)

    return Shelf(folder).make(Work("sft", 1, {"k": k}, {}), "policy", SCHEMA, {}, run)


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Mirror:
    """Named from the folder of a driver, which workers do not see."""
    (tmp_path / "driver").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    return Mirror("../mirror")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "machine" / "fetched")


def known(*reads: object, mirror: Mirror) -> dict[str, fetching.Source]:
    return sources(map(str, reads), "runs", mirror)


def copied(artifact: Artifact, inside: str = "model") -> Copied:
    return Copied(artifact.folder.name, artifact.digest, inside)


def file_in(mirror: Path, name: str) -> Path:
    """The one file of this name in the mirror."""
    (found,) = mirror.rglob(name)
    return found


def test_what_a_set_up_reads_is_told_apart_and_sent(mirror, tmp_path):
    artifact = make(Path("runs"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    (tmp_path / "driver" / "link").symlink_to(artifact.folder.absolute())
    in_artifact = [str(artifact.folder), str(artifact.folder.absolute() / "model"), "link/model"]
    reads = [*in_artifact, str(tmp_path / "own"), "gpt2", ""]
    found = known(*reads, mirror=mirror)
    assert [found.pop(name) for name in in_artifact] == [
        copied(artifact, inside) for inside in (".", "model", "model")
    ]
    assert found == {
        str(tmp_path / "own"): Own(
            str(tmp_path / "own"),
            {"config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
        )
    }
    assert mirror.manifest(artifact.folder.name) == artifact.manifest


def test_a_machine_reads_its_own_copy_and_keeps_it(mirror, tmp_path, cache):
    artifact = make(Path("runs"), words='{"a": 1}')
    location = str(artifact.folder / "model")
    found = known(location, mirror=mirror)
    url = mirror.everywhere  # as seen from the driver's folder, which is relative
    place = Place(0, folders=fetched(found, url, cache))
    assert Path.cwd() == cache.folder, "no name of a model leads anywhere by accident"
    here = Path(place.here(location))
    assert here.is_relative_to(cache.folder)
    assert (here / "config.json").read_text() == '{"a": 1}'
    assert place.here("gpt2") == "gpt2"
    shutil.rmtree(tmp_path / "mirror")
    assert fetched(found, url, cache) == {location: str(here)}, "it is fetched once"


def test_workers_that_begin_at_once_fetch_once(mirror, tmp_path, cache, monkeypatch):
    found = copied(make(Path("runs")))
    known(f"runs/{found.artifact}", mirror=mirror)
    far = Mirror(mirror.everywhere)
    asked: list[str] = []
    whole = Mirror.fetch_file

    def slowly(self: Mirror, place: str, *rest: Any) -> None:
        asked.append(place.rpartition("/")[2])
        time.sleep(0.1)
        whole(self, place, *rest)

    monkeypatch.setattr(Mirror, "fetch_file", slowly)
    cache.enter()
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: cache.artifact(found, far), range(4)))
    assert len(places) == 1
    assert sorted(asked) == ["config.json", "policy.parquet"]


def test_a_changed_byte_in_the_mirror_is_named(mirror, tmp_path, cache):
    found = known(make(Path("runs")).folder, mirror=mirror)
    file_in(tmp_path / "mirror", "config.json").write_text("{x")
    url = mirror.everywhere
    with pytest.raises(UserError, match=r"model/config.json is not what was sent \(its sha256"):
        fetched(found, url, cache)
    assert not list(cache.folder.rglob("config.json"))


def test_a_changed_byte_on_the_machines_disk_is_fetched_anew(mirror, cache, caplog):
    location = str(make(Path("runs")).folder)
    found, url = known(location, mirror=mirror), mirror.everywhere
    file = Path(fetched(found, url, cache)[location]) / "model/config.json"
    file.write_text("{x")
    fetched(found, url, cache)
    assert file.read_text() == "{}"
    assert "is not what was fetched: it is fetched anew" in caplog.text


def test_another_make_of_the_same_work_is_not_taken_for_it(mirror, tmp_path, cache):
    mirror.send(make(tmp_path / "another machine", words="{ }"))
    mine = make(Path("runs"))
    found, url = known(mine.folder, mirror=mirror), mirror.everywhere
    with pytest.raises(UserError, match=f"{mine.folder.name} was made by another machine"):
        fetched(found, url, cache)


def test_a_mirror_that_leads_elsewhere_is_named(mirror, tmp_path, cache):
    found = known(make(Path("runs")).folder, mirror=mirror)
    with pytest.raises(UserError, match=r"holds no sft-.*leads all machines to the same place"):
        fetched(found, f"file://{tmp_path}/nothing", cache)
    with pytest.raises(UserError, match=r"runtime.mirror=nope://x cannot be used"):
        fetched(found, "nope://x", cache)


def test_a_folder_of_the_users_has_to_be_there_file_for_file(mirror, tmp_path, cache):
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("{}")
    found, url = known(own, own / "config.json", mirror=mirror), mirror.everywhere
    assert fetched(found, url, cache) == {name: name for name in found}
    (own / "config.json").write_text("{ }")
    with pytest.raises(UserError, match=r"own is another than .* config.json differs"):
        fetched(found, url, cache)
    (own / "config.json").write_text("{}")
    (own / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config.json differs"):
        fetched(found, url, cache)
    shutil.rmtree(own)
    with pytest.raises(UserError, match=r"own is not there. Copy it there under the same path"):
        fetched(found, url, cache)


def test_a_model_that_is_trusted_is_trusted_where_it_was_fetched(mirror, cache, monkeypatch):
    folder = make(Path("runs")).folder
    trusted, other = str(folder / "model"), str(folder)
    monkeypatch.setenv(checkpoints.TRUSTED, f"gpt2,{trusted}")
    places = fetched(known(trusted, other, mirror=mirror), mirror.everywhere, cache)
    assert checkpoints.trusted(places[trusted])
    assert not checkpoints.trusted(places[other])


def test_what_nobody_used_for_a_week_goes_when_something_else_comes(mirror, cache):
    artifacts = [make(Path("runs"), k, f'{{"k": {k}}}') for k in range(4)]
    known(*(one.folder for one in artifacts), mirror=mirror)
    far = Mirror(mirror.everywhere)
    cache.enter()
    old, used, recent = (cache.artifact(copied(one), far) for one in artifacts[:3])
    for lock, place in zip(cache.using, (old, used, recent), strict=True):
        if place != used:
            lock.close()  # as when its worker ends
        if place != recent:
            long_ago = time.time() - fetching.UNUSED - 60
            os.utime(lock.name, (long_ago, long_ago))
    new = cache.artifact(copied(artifacts[3]), far)
    assert [place.exists() for place in (old, used, recent, new)] == [False, True, True, True]
    assert cache.artifact(copied(artifacts[0]), far).exists(), "it comes back when it is needed"


def test_a_disk_that_takes_nothing_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv(fetching.PLACE, str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"full cannot hold what is fetched: .* BPO_FETCHED"):
        own_cache().enter()
    monkeypatch.delenv(fetching.PLACE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert own_cache().folder == tmp_path / "caches" / "bpo_data" / "fetched"
