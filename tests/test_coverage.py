"""The coverage page against the code: what it says works is run here as the page has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from preferring import dataset, do_train, losses, make_started

from bpo_data.objectives import NAMES
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.values import parsed

torch.set_num_threads(1)
PAGE = (ROOT / "data_cards" / "coverage.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| system")
]
SYSTEMS = """
BPO (balance), BPO (Bregman), BPO (balanced margin), BPO (online), DPO, IPO, SLiC, rDPO, RPO, SPPO,
KTO, ORPO, SimPO, CPO, APO, NCA, EXO, BCO, AOT, DiscoPOP, WPO, LD-DPO, TR-DPO, f-DPO, f-PO, Cal-DPO,
DPOP, ASFT, VPO, HyPO, 3D-properties, SparsePO, TIS-DPO, TPO, SPO, Sem-DPO, MAPL, INPO, EGPO,
Nash-MD, APO-Nesterov, UPO, MCTS-DPO, RSO, DSTC, rationales, FSPO, DPA, PRO, ADPO,
GPO (generalised), GPM"""
COLUMNS = {
    "win_rate_chosen": [1.0] * 8,
    "win_rate_rejected": [0.5, 0.0] * 4,
    "shift_chosen": [0.0] * 8,
    "shift_rejected": [0.5, -0.5] * 4,
}


def asked_of(cell: str) -> dict[str, Any]:
    """The settings of ``train`` in a cell, up to its first semicolon."""
    found: dict[str, Any] = {}
    for name, value in re.findall(r"`train\.([a-z_.]+)=([^`]+)`", cell.partition(";")[0]):
        section, _, option = name.partition(".")
        if option:
            found.setdefault(section, {})[option] = parsed(value)
        else:
            found[name] = parsed(value)
    return found


WORKS = {row[0]: asked_of(row[2]) for row in ROWS if row[3] == "works"}
ALONE = {
    name for name, asked in WORKS.items() if asked.keys() == {"loss"} and asked["loss"] in NAMES
}
"""Rows of a loss and no more: tests/test_trainer.py trains with each."""


def test_every_system_has_one_row_and_a_known_state() -> None:
    names = [row[0] for row in ROWS]
    assert len(set(names)) == len(names)
    assert {name.strip() for name in SYSTEMS.replace("\n", " ").split(",")} <= set(names)
    for row in ROWS:
        assert len(row) == 4, row
        assert all(row), row
        assert row[3] in ("works", "data", "not here"), row
        if row[3] == "works":
            assert "loss" in asked_of(row[2]), row


def test_every_setting_and_test_of_the_page_exists() -> None:
    problems: list[str] = []
    for name, value in re.findall(r"`([a-z]+\.[a-z_.]+)(?:=([^`]+))?`", PAGE):
        settings.kind_of(name, problems)
        if name == "train.loss":
            assert set(value.split("+")) <= set(NAMES), value
    assert problems == []
    for path, test in re.findall(r"`(tests/\w+\.py)::(\w+)", PAGE):
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_loss_is_on_the_page() -> None:
    missing = [name for name in NAMES if not re.search(rf"\b{name}\b", PAGE)]
    assert missing == ["sigmoid_norm"], "TRL's own variant, in no paper that we know of"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_started(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("system", sorted(WORKS.keys() - ALONE))
def test_what_works_lowers_its_objective_and_raises_the_chosen_in_ten_updates(
    started: Path, tmp_path: Path, system: str
) -> None:
    table = dataset(**COLUMNS)
    draft = do_train(tmp_path, started, table, learning_rate=3e-3, **WORKS[system])
    found, margins = losses(draft), draft.read()["margin"].to_pylist()
    assert found[-1] < found[0]
    assert margins[-1] > margins[0]
