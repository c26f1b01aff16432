"""What reaches the hub is the export, byte for byte, where and as visibly as the user said.

The client is the real one, in a process of its own, against ``hub_stub``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import ROOT
from hub_stub import TOKEN, Hub, Repository, serving

from bpo_data import disk
from bpo_data.artifacts import Artifact, Draft
from bpo_data.errors import UserError
from bpo_data.hub import packed, problems
from bpo_data.shelf import Shelf
from bpo_data.work import Work

REPO = "my-lab/balanced"
CARD = """---
license: {license}
configs:
- config_name: default
  description: rows 0123456789abcdef
  data_files:
  - split: train
    path: train.parquet
---
# A dataset with a déjà vu
"""


def export(folder: Path, *, license: str = "mit", rows: int = 3) -> Artifact:
    """An artifact such as the stage ``export`` leaves: a dataset, its card, another format."""
    schema = pa.schema([pa.field("row", pa.int64())])

    def run(draft: Draft) -> None:
        draft.write(pa.table({"row": range(rows)}, schema=schema), "dataset/train.parquet")
        card = CARD.format(license=license).encode()
        disk.write_bytes(card, draft.view("dataset/README.md"))
        disk.write_bytes(b'{"a": 1}\n', draft.file("formats/openai/train.jsonl"))

    work = Work("export", 1, {"license": license, "rows": rows}, {})
    return Shelf(folder).make(work, "dataset", schema, {}, run)


def pushed(artifact: Artifact) -> dict[str, bytes]:
    """What the repository should hold of it."""
    dataset, formats = artifact.folder / "dataset", artifact.folder / "formats"
    return {
        "README.md": (dataset / "README.md").read_bytes(),
        "train.parquet": (dataset / "train.parquet").read_bytes(),
        "formats/openai/train.jsonl": (formats / "openai" / "train.jsonl").read_bytes(),
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return export(tmp_path_factory.mktemp("runs"))


SCRIPT = """
import sys
from pathlib import Path
from bpo_data import hub
from bpo_data.errors import UserError
folder, repo, private, dry_run = sys.argv[1:]
try:
    print("\\n".join(hub.push(Path(folder), repo, private=private == "True",
                              dry_run=dry_run == "True")))
except UserError as error:
    sys.exit(f"bpo_data: {error}")
"""


def push(
    hub: Hub, artifact: Artifact, home: Path, *, repo: str = REPO, private: bool = True,
    dry_run: bool = False, token: str = TOKEN, offline: str = "0",
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """``hub.push`` in a process that knows no hub but the stub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(artifact.folder), repo, str(private), str(dry_run)],
        env={
            **kept, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        },
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    for part in (TOKEN, TOKEN[8:24], "Traceback"):
        assert part not in done.stdout + done.stderr
    return done


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The single line of a push that was refused."""
    assert done.returncode == 1
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_what_arrives_is_the_export_byte_for_byte_in_one_private_commit(hub, artifact, tmp_path):
    done = push(hub, artifact, tmp_path)
    assert done.returncode == 0, done.stderr
    there = hub.repositories[REPO]
    assert there.files == {".gitattributes": b"", **pushed(artifact)}
    assert there.private
    (message,) = there.messages
    assert message.startswith("3 pairs, rows 0123456789abcdef")
    last = done.stdout.splitlines()[-1]
    assert last == f"pushed: {hub.url}/datasets/{REPO}/commit/{there.sha}"
    for place, content in pushed(artifact).items():
        assert re.search(rf"{place} +{len(content):,} bytes  sha256 ", done.stdout)
    assert "warning" not in done.stdout + done.stderr
    asked = [f"{method} {path}" for method, path, _ in hub.requests]
    parquet = next(iter(hub.objects))
    assert asked == [
        f"GET /api/datasets/{REPO}",
        "POST /api/repos/create",
        "POST /api/validate-yaml",
        f"POST /api/datasets/{REPO}/preupload/main",
        f"POST /datasets/{REPO}.git/info/lfs/objects/batch",
        f"PUT /objects/{parquet}",
        f"POST /api/datasets/{REPO}/commit/main",
    ]


def test_the_same_export_can_be_pushed_again_and_a_new_one_replaces_it(hub, artifact, tmp_path):
    push(hub, artifact, tmp_path)
    before = dict(hub.repositories[REPO].files)
    again = push(hub, artifact, tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{REPO}, private: it exists" in again.stdout
    assert again.stdout.splitlines()[-1].startswith("there already: ")
    assert not again.stderr
    assert hub.repositories[REPO].files == before
    assert len(hub.repositories[REPO].messages) == 1, "nothing changed, so there is no commit"
    longer = export(tmp_path / "longer", rows=5)
    assert push(hub, longer, tmp_path).returncode == 0
    assert hub.repositories[REPO].files == {".gitattributes": b"", **pushed(longer)}
    assert len(hub.repositories[REPO].messages) == 2


def test_a_public_repository_is_made_only_when_asked_for(hub, artifact, tmp_path):
    done = push(hub, artifact, tmp_path, private=False)
    assert not hub.repositories[REPO].private
    assert f"{REPO}, public: it is new" in done.stdout


def test_a_public_repository_gets_nothing_that_was_to_be_private(hub, artifact, tmp_path):
    hub.repositories[REPO] = Repository(private=False, files={"theirs.csv": b"a"})
    line = one_line(push(hub, artifact, tmp_path))
    assert "is public, and export.private=true. Nothing was sent" in line
    assert [method for method, _, _ in hub.requests] == ["GET"]
    assert hub.repositories[REPO].files == {"theirs.csv": b"a"}


def test_an_existing_repository_keeps_its_visibility_and_the_files_of_others(
    hub, artifact, tmp_path
):
    theirs = {"theirs.csv": b"a", "README.md": b"old"}
    hub.repositories[REPO] = Repository(private=True, files=dict(theirs))
    done = push(hub, artifact, tmp_path, private=False)
    assert done.returncode == 0, done.stderr
    assert hub.repositories[REPO].private
    assert "it is private and stays so" in done.stdout
    assert hub.repositories[REPO].files == {"theirs.csv": b"a", **pushed(artifact)}
    assert "written anew: README.md" in done.stdout
    assert "left as they are: theirs.csv" in done.stdout


def test_a_dry_run_asks_the_hub_nothing_and_shows_what_would_go(hub, artifact, tmp_path):
    done = push(hub, artifact, tmp_path, dry_run=True, token="")
    assert done.returncode == 0, done.stderr
    assert not hub.requests
    lines = done.stdout.splitlines()
    assert lines[0] == f"would push to {hub.url}/datasets/{REPO}, private if it is new"
    for place in pushed(artifact):
        assert any(place in line and "sha256" in line for line in lines)
    assert "  license: mit" in lines
    assert lines[-1] == "warning: no token yet. Set HF_TOKEN."


def test_an_unknown_licence_is_said(tmp_path, artifact):
    unknown = packed(export(tmp_path / "runs", license="unknown").folder)
    assert unknown.lines()[-1].startswith("warning: the licence of the source is unknown")
    assert not any("licence" in line for line in packed(artifact.folder).lines())


def test_without_a_token_nothing_is_sent(hub, artifact, tmp_path):
    line = one_line(push(hub, artifact, tmp_path, token=""))
    assert "export HF_TOKEN=" in line
    assert not hub.requests


def test_a_login_of_the_hub_s_library_is_taken(hub, artifact, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    assert push(hub, artifact, tmp_path, token="").returncode == 0
    assert {authorization for _, path, authorization in hub.requests if "/api/" in path} == {
        f"Bearer {TOKEN}"
    }


def test_a_token_that_is_not_taken_is_one_line(hub, artifact, tmp_path):
    line = one_line(push(hub, artifact, tmp_path, token="hf_anotherTokenOfNobody0123456789"))
    assert "(401): the hub does not take the token. Set HF_TOKEN" in line
    assert "anotherTokenOfNobody" not in line


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("POST /api/repos/create", 403, "the token may not write there"),
        ("POST /api/repos/create", 404, "there is no such place"),
        ("POST /api/validate-yaml", 400, "the hub refuses what was sent"),
        ("PUT /objects/", 403, "the token may not write there"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    hub, artifact, tmp_path, part, status, words
):
    hub.faults[part] = (status, "You came with {authorization}")
    line = one_line(push(hub, artifact, tmp_path))
    assert f"export.push_to_hub={REPO} ({status}): {words}" in line
    assert "Bearer [key]" in line or part != "POST /api/repos/create"
    assert not hub.repositories.get(REPO, Repository(True)).messages


def test_a_hub_that_is_not_there_is_one_line(hub, artifact, tmp_path):
    hub.url = "http://127.0.0.1:9"
    assert f"export.push_to_hub={REPO}: the push failed." in one_line(push(hub, artifact, tmp_path))


def test_offline_is_said(hub, artifact, tmp_path):
    line = one_line(push(hub, artifact, tmp_path, offline="1"))
    assert "HF_HUB_OFFLINE is set" in line


def test_what_the_hub_thinks_of_the_metadata_is_passed_on(hub, artifact, tmp_path):
    hub.warnings = ["language[0] must be a code"]
    done = push(hub, artifact, tmp_path)
    assert "warning: " in done.stdout
    assert "language[0] must be a code" in done.stdout


def test_a_changed_file_and_an_unfinished_folder_are_refused(tmp_path):
    changed = export(tmp_path / "runs")
    with open(changed.folder / "dataset" / "train.parquet", "ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match="not what was written"):
        packed(changed.folder)
    (changed.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds no finished export"):
        packed(changed.folder)


def test_a_card_with_the_token_in_it_is_not_sent(hub, tmp_path):
    leaking = export(tmp_path / "runs", license=f"other  # {TOKEN}")
    assert "README.md holds your token" in one_line(push(hub, leaking, tmp_path))
    assert not hub.requests


@pytest.mark.parametrize("repo", ["balanced", "a/b/c", "a b/c", "a/b..c", "-a/b", "a/\x1b[31m", ""])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_asked(repo):
    (line,) = problems(repo)
    assert line.startswith("export.push_to_hub=")
    assert "write org/name" in line
    assert line.isprintable()


def test_a_good_name_has_no_problems():
    assert not list(problems(REPO))
