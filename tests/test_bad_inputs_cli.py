"""What the person at the keyboard sees of each broken file."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from helpers import SHARED

from bpo_data.pipelines.run import main

FOLDER = SHARED / "bad_inputs"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data folder is not here")


def entries() -> list:
    path = FOLDER / "expected.json"
    return json.loads(path.read_text()) if path.exists() else []


def named(*expectations: str) -> list:
    return [
        pytest.param(entry, id=entry["file"])
        for entry in entries()
        if entry["expect"] in expectations and entry["kind"] != "judge_raw"
    ]


def load(entry: dict, folder) -> int:
    # own_data holds no column names, so the file is read as a user's would be.
    path = f"load.path={FOLDER / entry['file']}"
    return main(["stage=load", "recipe=own_data", path, f"runtime.folder={folder}"])


@pytest.mark.parametrize("entry", named("reject_file"))
def test_a_refused_file_is_one_line_and_status_2(entry, tmp_path, capsys):
    assert load(entry, tmp_path) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bpo_data:")]
    assert len(lines) == 1
    assert entry["file"] in lines[0]
    assert not list(tmp_path.glob("load-*/manifest.json"))


@pytest.mark.parametrize("entry", named("quarantine", "accept", "accept_with_notice"))
def test_no_row_is_lost_between_the_file_and_the_tables(entry, tmp_path):
    assert load(entry, tmp_path) == 0
    (folder,) = tmp_path.glob("load-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = manifest["facts"]
    rejected = pq.read_table(folder / "rejected.parquet")
    assert facts["rows_in"] == entry["rows"]
    assert facts["rows_rejected"] == rejected.num_rows
    assert sum(facts["rejected_by_reason"].values()) == rejected.num_rows
    kept = facts["rows_in"] - facts["rows_rejected"]
    assert manifest["rows"] + facts["notices"].get("repeated_prompt", 0) == kept
    if entry["good_rows"] is not None:
        assert kept == entry["good_rows"]
    outside = {path.name for path in tmp_path.iterdir()} - {folder.name, ".locks", ".used"}
    assert not outside, "a file outside the artifact"
