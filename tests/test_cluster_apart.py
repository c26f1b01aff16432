"""The engine ``ray`` on machines that share no disk: what they read comes through the mirror.

Each machine is a node of Ray that sees nothing in the folder of the run (a mount namespace), and
has a folder of its own for what it fetches. The mirror is a folder that all see, or a server that
speaks S3 where moto and s3fs are installed.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from apart import NUMBER, World, can_s3, encoder, s3_server
from clusters import Making, Nodes, lets_mount, made_by, started, wait_for
from making import Shifted, make, shift
from test_cluster_pipeline import digests, done

from bpo_data.engines import cluster
from bpo_data.errors import UserError
from bpo_data.mirror import Mirror

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.skipif(not lets_mount(), reason="this machine lets nobody mount"),
]


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with started() as nodes:
        yield nodes


@pytest.fixture
def world(head, tmp_path) -> Iterator[World]:
    world = World(head, tmp_path)
    yield world
    head.remove_all()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """The digest of what one process makes where all is."""
    folder = tmp_path_factory.mktemp("unbroken")
    read = shift(folder / "runs", NUMBER)
    return make(folder, None, Shifted(folder / "notes", folder=str(read.folder / "model"))).digest


def twice(notes: Path) -> set[str]:
    return {path.name for path in notes.glob("made-*") if path.stat().st_size > 1}


@pytest.fixture(params=["a folder", "s3"])
def mirror(request, world, monkeypatch) -> Iterator[str]:
    if request.param == "a folder":
        yield f"file://{world.folder}/mirror"
        return
    if not can_s3():
        pytest.skip("moto and s3fs are not installed")
    import s3fs

    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket/team/runs"


def test_machines_that_share_no_disk_make_the_same_bytes(world, mirror, unbroken, monkeypatch):
    monkeypatch.chdir(world.driver)  # they do not see this folder either
    world.machine("one")
    world.machine("two", workers=2)
    made = made_by(world.runs, world.shifted(0.1, crowd=3), world.runtime(mirror, 3))
    assert made.digest == unbroken
    assert world.places() == {"one", "two"}
    assert twice(world.notes) == set()
    assert {path.suffix for path in made.folder.iterdir()} == {".parquet", ".json"}


def test_a_worker_that_is_killed_among_near_and_far_ones_costs_its_part(world, unbroken, caplog):
    world.nodes.add()
    world.machine("one")
    made = made_by(world.runs, world.shifted(0.1, fault="die", crowd=2), world.runtime())
    assert made.digest == unbroken
    assert world.places() == {"driver", "one"}, "who sees the folder reads there"
    assert twice(world.notes) == set()
    assert made.facts["workers_lost"] == 1
    assert "squares-00005.parquet is made anew: worker" in caplog.text


def test_an_answer_that_comes_when_its_part_was_made_by_another_changes_nothing(
    world, unbroken, monkeypatch
):
    monkeypatch.setattr(cluster, "LEAST_LEASE", 3.0)
    frozen = psutil.Process(world.machine("one"))
    world.machine("two")
    with Making(world.runs, world.shifted(0.5, crowd=2), world.runtime()) as making:
        wait_for(lambda: len(list(world.notes.glob("made-*"))) >= 2)
        processes = [frozen, *frozen.children(recursive=True)]
        for process in processes:
            process.suspend()
        made = making.ended(90)
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    workers = [one for one in processes if one.name().startswith("ray::Worker")]
    for process in workers:  # first, or Ray ends them before they have answered
        process.resume()
    wait_for(lambda: twice(world.notes), 20)
    time.sleep(1)
    for process in processes:
        process.resume()
    time.sleep(2)
    assert made.digest == unbroken
    assert made.facts["workers_lost"] == 1
    assert {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert not list(world.runs.glob("*.partial"))


def test_what_a_far_machine_lacks_is_said_in_one_line(world, monkeypatch):
    monkeypatch.chdir(world.driver)
    world.machine("one", workers=4)  # whose processes begin before they are needed
    (world.driver / "own").mkdir()
    (world.driver / "own" / "number").write_text("7")
    assert Mirror(world.runtime().mirror).send(world.read)
    (sent,) = (world.folder / "mirror").rglob("number")
    sent.write_text("1001")
    own = Shifted(world.notes, folder=str(world.driver / "own"))
    for words, shifted, runtime in (
        ("or name in runtime.mirror a URL that all", world.shifted(), world.runtime("", 1)),
        ("is in the memory of one process", own, world.runtime("memory://runs", 1)),
        ("driver/own is not there. Copy it there under", own, world.runtime(processes=1)),
        ("/model/number is not what was sent", world.shifted(), world.runtime(processes=1)),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            made_by(world.runs, shifted, runtime)
        assert str(caught.value).startswith("runtime.engine=ray: ")
        assert socket.gethostname() in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_pipeline_makes_the_same_bytes_without_a_shared_disk(world, tmp_path):
    from test_reward_model import make_model  # it loads torch

    local, far = tmp_path / "local", world.driver
    local.mkdir()
    words = [
        *("embed.kind=encoder", f"embed.options.model={encoder(tmp_path / 'encoder')}"),
        *("score.kind=reward_model", f"score.options.model={make_model(tmp_path / 'reward')}"),
        *("cluster.k=3", "cluster.fit_on=20", "stage=cluster"),
    ]
    shutil.rmtree(world.runs)
    done(local, "stage=sft")
    shutil.copytree(local / "runs", world.runs)
    world.machine("one", workers=2)
    ray = (
        *("runtime.engine=ray", f"runtime.address={world.nodes.cluster.address}"),
        *("runtime.processes=1", "runtime.device=cpu", f"runtime.mirror={world.runtime().mirror}"),
    )
    begun = time.monotonic()
    done(far, *words, *ray)
    print(f"TOOK {time.monotonic() - begun:.1f} s")
    done(local, *words)
    assert digests(far) == digests(local)
    fetched = {path.parent.name for path in (tmp_path / "one").glob("*/*/manifest.json")}
    assert {name.partition("-")[0] for name in fetched} == {"sft", "gradients"}
