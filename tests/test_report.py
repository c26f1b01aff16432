"""The page: true counts, and hostile text that stays text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_data, run

from bpo_data.pipelines import config as settings
from bpo_data.stages import STAGES
from bpo_data.work import settings_of

EVIL = [
    "<script>window.owned = true</script>",
    "</td></table></script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "\u202eright to left\u202c \u200d\u200b " + "x" * 3000,
    "javascript:alert(1) &lt;b&gt;",
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The report of a whole run over hostile rows."""
    folder = tmp_path_factory.mktemp("evil")
    source = folder / "evil.jsonl"
    rows = [
        {
            "prompt": f"{number} {EVIL[number % len(EVIL)]}",
            "chosen": f"good {EVIL[(number + 1) % len(EVIL)]}",
            "rejected": f"bad {number}",
            "topic": EVIL[0],
        }
        for number in range(30)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(
        "recipe=own_data", f"load.path={source}", f"runtime.folder={folder}/runs",
        "sft.steps=2", "sft.batch=2", "augment.client=replay", "score.kind=given",
        "gradients.rank=2", "gradients.dim=16", "train.steps=1", "train.batch=2",
        "evaluate.prompts=2", "evaluate.max_tokens=4", "allocate.share=1", "select.share=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (made,) = (folder / "runs").glob("report-*")
    return made


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_hostile_text_is_shown_and_makes_no_element(page):
    parsed = Tags()
    parsed.feed(page)
    assert not {"img", "iframe", "object", "link"} & set(parsed.tags)
    assert parsed.tags.count("script") == 2, "the map's points and the page's own"
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    shown = "".join(parsed.text)
    assert "<script>window.owned = true</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "49" not in shown.split("{{ 7 * 7 }}")[1][:20]


def test_the_page_asks_for_nothing_outside_and_links_to_the_stages_beside_it(page, folder):
    parsed = Tags()
    parsed.feed(page)
    links = [value for name, value in parsed.attributes if name in ("src", "href", "action")]
    beside = [link for link in links if not link.startswith("#")]
    made = [path.parent for path in folder.parent.glob("*/manifest.json")]
    assert sorted(beside) == sorted(f"../{one.name}/" for one in made if one != folder)
    assert all((folder / link).is_dir() for link in beside)
    assert "@import" not in page
    assert "url(" not in page


def test_own_pairs_without_new_responses_say_why_there_is_no_win_rate(page):
    assert "No win rate" in page
    assert "of held-out pairs moved the right way" in page


def test_length_bias_stands_for_all_pairs_for_candidates_and_for_those_kept(page):
    rows = (
        page.split("<h3>Length</h3>")[1].split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    )
    cells = [[cell.split("<")[0].split(">")[-1] for cell in row.split("<td")[1:]] for row in rows]
    assert [row[0] for row in cells] == ["all with a margin above the floor", "candidates", "kept"]
    assert len({row[1] for row in cells}) == 1, "one pair a prompt, all of them kept"
    assert {tuple(row[2:4]) for row in cells} == {("100.0 %", "0")}
    assert "a policy may learn just that" in page


def test_the_recipe_beside_the_page_asks_for_the_settings_of_every_artifact(folder):
    asked = settings.read([f"recipe={folder / 'recipe.yaml'}"])
    found = {}
    for path in folder.parent.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["stage"]] = manifest["settings"]
    assert found.keys() == STAGES.keys()
    for stage, recorded in found.items():
        assert settings_of(getattr(asked.config, stage)) == recorded, stage


def test_the_page_names_its_artifacts_and_its_sample(page, folder):
    for path in folder.parent.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] != "report":
            assert manifest["digest"] in page
            assert path.parent.name in page
    pairs = pq.read_metadata(folder / "map.parquet").num_rows
    assert f"All {pairs} pairs." in page
    assert "Stand-in models" in page


@needs_data
def test_control_tokens_in_text_never_become_control_tokens(tmp_path):
    result = run(
        "stage=gradients", "recipe=own_data", f"runtime.folder={tmp_path}",
        f"load.path={SHARED / 'bad_inputs' / '28_special_tokens.jsonl'}", "load.test_share=0",
        "sft.steps=2", "sft.batch=2", "augment.client=replay", "select.share=1",
        "gradients.rank=2", "gradients.dim=16",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("gradients-*/manifest.json")
    facts = json.loads(path.read_text())["facts"]
    assert facts["responses"] == 20
    assert facts["set_aside"] == {}
