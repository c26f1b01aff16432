"""The README against the code, so that it cannot go stale."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT

from bpo_data.components import allocators, clusterers, embedders, judges, sources
from bpo_data.pipelines import config as settings
from bpo_data.stages import STAGES

README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows_under(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_stage_table_is_the_stages():
    rows = rows_under("Stages")
    assert [(row[0].strip("`"), row[1].strip("`")) for row in rows] == [
        (name, stage.makes) for name, stage in STAGES.items()
    ]


def test_every_setting_the_readme_names_exists():
    text = README + "".join(
        path.read_text(encoding="utf-8") for path in settings.recipe_folder().glob("*.yaml")
    )
    sections = "|".join(field for field in settings.Config.__dataclass_fields__)
    named = set(re.findall(rf"\b(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*(?==|`)", text))
    assert len(named) > 30
    files = {key for key in named if key.endswith((".html", ".yaml", ".py", ".parquet"))}
    problems: list[str] = []
    for key in sorted(named - files):
        settings.kind_of(key, problems)
    assert problems == []


def test_every_path_the_readme_points_to_exists():
    for _, where in rows_under("To change X, open Y"):
        for path in re.findall(r"`([^`]+)`", where):
            beside = ROOT / "bpo_data" / "components" / path
            assert (ROOT / path).exists() or beside.exists(), path


def test_every_recipe_is_named():
    for name in settings.recipes():
        assert f"`{name}`" in README


@pytest.mark.parametrize(
    "kinds", [allocators.KINDS, clusterers.KINDS, embedders.KINDS, judges.KINDS, sources.KINDS]
)
def test_every_kind_says_what_it_is(kinds):
    for name, kind in kinds.items():
        assert (kind.__doc__ or "").strip(), name


def test_the_commands_are_where_ci_looks_for_them():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "command_of run" in ci
    for name in ("run", "test"):
        block = README.split(f"<!-- command: {name} -->\n```bash\n")[1].split("\n```")[0]
        assert "\n" not in block
        assert "constraints.txt" in block
