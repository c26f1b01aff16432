"""The README, the guide and the benchmarks against the code, so that they cannot go stale."""

from __future__ import annotations

import itertools
import re

import pytest
from helpers import ROOT

from bpo_data.components import allocators, clusterers, embedders, exporters, judges, sources
from bpo_data.llm.replies import STATES
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import outlook
from bpo_data.pipelines.manual import documented
from bpo_data.stages import STAGES

PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "GUIDE.md", "BENCHMARKS.md"),
        *("data_cards/worked_example.md", "data_cards/coverage.md"),
    )
}
README, GUIDE = PAGES["README.md"], PAGES["GUIDE.md"]


def rows_of(page: str, heading: str) -> list[list[str]]:
    """Rows of the first table whose heading row begins so."""
    lines = page[page.index(f"\n| {heading} |") :].strip().splitlines()
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def names_of(page: str, heading: str) -> list[str]:
    """What the first column of a table names in backticks."""
    return [name for row in rows_of(page, heading) for name in re.findall(r"`([^`]+)`", row[0])]


def test_the_stage_table_is_the_stages():
    rows = rows_of(README, "stage")
    assert [(row[0].strip("`"), row[1].strip("`")) for row in rows] == [
        (name, stage.makes) for name, stage in STAGES.items()
    ]


def test_every_setting_the_readme_names_exists():
    text = "".join(PAGES.values()) + "".join(
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
    for _, where in rows_of(GUIDE, "to change"):
        for path in re.findall(r"`([^`]+)`", where):
            beside = ROOT / "bpo_data" / "components" / path
            assert (ROOT / path).exists() or beside.exists(), path


def test_every_recipe_is_named():
    for name in settings.recipes():
        assert f"`{name}`" in README


@pytest.mark.parametrize(
    "kinds",
    [
        allocators.KINDS,
        clusterers.KINDS,
        embedders.KINDS,
        exporters.KINDS,
        judges.KINDS,
        sources.KINDS,
    ],
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


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("state | what came", STATES),
        ("state | what it means", outlook.STATES),
        ("kind", judges.KINDS),
        ("format", exporters.KINDS),
    ],
)
def test_the_guides_tables_name_what_there_is(heading, known):
    assert sorted(names_of(GUIDE, heading)) == sorted(known)


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, no signs, dashes for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if "://" in target:
            continue
        path, _, part = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.is_file(), f"{name}: {target}"
        if part:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in {anchor(one) for one in headings}, f"{name}: {target}"


def test_the_readme_is_one_page():
    assert len(README.splitlines()) < 300


def test_every_setting_of_every_section_has_a_meaning():
    for section in settings.Config.__dataclass_fields__:
        kind = settings.Config.__dataclass_fields__[section].default_factory
        for key, _, meaning in documented(kind):
            assert meaning, f"{section}.{key}"
