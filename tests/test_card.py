"""The card says what the dataset is, ``datasets`` and the hub read it, and no text breaks it."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import reporting
import yaml
from helpers import ROOT, run
from markdown_it import MarkdownIt
from reading_markdown import tokens

from bpo_data import card
from bpo_data.artifacts import Artifact, Draft
from bpo_data.cards import figures, privacy
from bpo_data.components.rubric import TEMPLATE as RUBRIC
from bpo_data.errors import plain
from bpo_data.llm.prices import Price, Prices
from bpo_data.pipelines import config as asking
from bpo_data.report import authors, pair_map
from bpo_data.stages import STAGES, export
from bpo_data.stages.report import ReportConfig
from bpo_data.work import settings_of

AUTHORS = ("| <img onerror=1>", "b`c|d\\", "\u202eevil\n# head")
SOURCE = "a|<img src=x onerror=alert(1)>[x](y)`.jsonl"
SETTINGS = (
    "recipe=own_data", "score.kind=given", "augment.client=replay", "sft.steps=1", "sft.batch=2",
    "sft.scratch.width=16", "sft.scratch.layers=1", "sft.scratch.heads=2", "sft.scratch.hidden=16",
    "gradients.rank=2", "gradients.dim=16",
)  # fmt: skip

Manifests = dict[str, dict[str, Any]]
"""The manifests of all artifacts that the export reads, by table."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A finished export of a source whose name, authors and labels are out to break the card."""
    folder = tmp_path_factory.mktemp("card")
    rows = [
        {
            "prompt": f"question {prompt}?",
            "response": f"answer {prompt} {number} " + "word " * number,
            "score": number,
            "author": AUTHORS[number % 3],
            "topic": "<script>alert(1)</script>",
        }
        for prompt in range(16)
        for number in range(4)
    ]
    source = folder / "home" / "me" / SOURCE
    source.parent.mkdir(parents=True)
    source.write_text("\n".join(map(json.dumps, rows)))
    done = run("stage=export", f"runtime.folder={folder}/runs", f"load.path={source}", *SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def dataset(runs) -> Path:
    (folder,) = runs.glob("export-*/dataset")
    return folder


def drafted(
    runs: Path, folder: Path, change: Callable[[Manifests, dict[str, Any]], None]
) -> tuple[Draft, dict[str, Any]]:
    """The export's draft as the card meets it, with manifests and facts as ``change`` leaves them;
    and the export's settings."""
    found = {}
    for path in runs.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["makes"]] = Artifact(path.parent, manifest)
    made = found["dataset"]
    stage = STAGES["export"]
    inputs = {name: found[name] for name in (*stage.needs, *stage.also)}
    facts = copy.deepcopy(made.facts)
    change({name: used.manifest for name, used in inputs.items()}, facts)
    shutil.copytree(made.folder, folder / "export", dirs_exist_ok=True)
    schema = export.schema(export.ExportConfig())
    draft = Draft(folder / "export", "dataset", schema, inputs, "export")
    draft.table_files, draft.facts = made.manifest["table"], facts
    return draft, made.manifest["settings"]


def as_it_was(manifests: Manifests, facts: dict[str, Any]) -> None:
    return


def written(
    runs: Path,
    folder: Path,
    change: Callable[[Manifests, dict[str, Any]], None] = as_it_was,
    prices: Prices | None = None,
    **settings: Any,
) -> str:
    draft, own = drafted(runs, folder, change)
    return card.text(draft, {**own, **settings}, prices)


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def headings(markdown: str) -> list[str]:
    parsed = MarkdownIt("commonmark").parse(markdown)
    return [after.content for token, after in pairwise(parsed) if token.type == "heading_open"]


def test_datasets_loads_the_folder_with_the_features_that_the_card_declares(dataset, tmp_path):
    import datasets
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard

    data = DatasetCard.load(dataset / "README.md").data
    declared = DatasetInfosDict.from_dataset_card_data(data)["default"]
    loaded = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path))
    files = {path.stem: path for path in dataset.glob("*.parquet")}
    assert set(loaded) == set(files) == set(declared.splits)
    for name, path in files.items():
        rows = pq.read_table(path)
        assert loaded[name].features == declared.features
        assert declared.features == datasets.Features.from_arrow_schema(rows.schema)
        assert declared.splits[name].num_examples == rows.num_rows == len(loaded[name])
        assert declared.splits[name].num_bytes == rows.nbytes
    assert declared.download_size == sum(path.stat().st_size for path in files.values())


def test_a_card_that_declares_other_features_is_not_read_over(dataset, tmp_path):
    """The declaration is not for show: ``datasets`` holds the rows against it."""
    import datasets

    wrong = tmp_path / "wrong"
    shutil.copytree(dataset, wrong)
    text = (wrong / "README.md").read_text()
    (wrong / "README.md").write_text(text.replace("name: margin", "name: margins"))
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        datasets.load_dataset(str(wrong), cache_dir=str(tmp_path / "cache"))


def test_no_text_of_source_or_authors_becomes_structure(runs, tmp_path):
    def hostile(manifests: Manifests, facts: dict[str, Any]) -> None:
        manifests["selection"]["settings"]["kind"] = "x` </code><script>alert(1)</script>"
        manifests["allocation"]["settings"]["kind"] = "mine:`|<b>"
        manifests["embeddings"]["settings"]["options"] = {"model": "[m](javascript:alert(1))"}
        manifests["responses"]["facts"]["states"] = {"ok\n\n# broken": 3}
        facts["formats"] = {
            "a|b": {"max_length": 9, "pairs": 1, "rule": "1. <iframe src=x>\n\n***\n> ![i](x)"}
        }

    text = body(written(runs, tmp_path, hostile, license="<b>mine</b> | ![x](y)"))
    found = list(tokens(text))
    assert not {token.type for token in found} & {"html_block", "html_inline", "image", "hr"}
    links = [token.attrGet("href") for token in found if token.type == "link_open"]
    assert set(links) == {
        "https://arxiv.org/abs/2411.10914",
        "#what-is-the-papers-and-what-is-ours",
    }
    ours = [line.lstrip("# ") for line in card.template_path().read_text().splitlines()
            if line.startswith("#") and "{{" not in line]  # fmt: skip
    assert set(headings(text)[1:]) <= set(ours)
    assert "\u202e" not in text
    seen = "".join(token.content for token in found)
    for words in (*map(plain, AUTHORS), plain(SOURCE), "mine:`|<b>", "1. <iframe src=x> *** >"):
        assert words in seen


def test_every_table_has_the_cells_of_its_head(runs, tmp_path):
    parsed = MarkdownIt("commonmark").enable("table").parse(body(written(runs, tmp_path)))
    rows: list[list[str]] = []
    for token in parsed:
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append(token.type)
    lines = [line for line in body(written(runs, tmp_path)).splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert len(row) == line.count("|") - 1, line


def test_the_user_s_folders_and_keys_are_not_in_the_card(runs, tmp_path):
    secrets = ("sk-proj-Zq9vK3mWx7TtR2yLbN4c", "letmein", "abc.def.ghi")

    def private(manifests: Manifests, facts: dict[str, Any]) -> None:
        manifests["policy"]["settings"]["model"] = "/home/me/models/mine"
        manifests["responses"]["settings"] |= {
            "client": "openai", "model": "writer", "base_url": "http://localhost:8000/v1",
            "extra": {"api_key": secrets[0], "headers": {"Authorization": "x", "z": secrets[0]},
                      "password": secrets[1], "note": f"Bearer {secrets[2]}", "min_p": 0.1},
        }  # fmt: skip
        manifests["scores"]["settings"] |= {
            "kind": "reward_model", "options": {"model": "/home/me/judges/strict"},
        }  # fmt: skip

    text = written(runs, tmp_path, private)
    assert "/home/me" not in text
    assert str(runs.parent) not in text
    assert not [secret for secret in secrets if secret in text]
    assert "`strict`" in text
    settings = settings_in(text)
    assert settings["load"]["path"] == SOURCE
    assert settings["sft"]["model"] == "mine"
    assert settings["augment"]["extra"]["min_p"] == 0.1
    assert settings["augment"]["extra"]["api_key"] == privacy.HIDDEN
    assert "Paths are shortened" in text
    assert "Values shown as `[hidden]`" in text


def settings_in(text: str) -> dict[str, Any]:
    """The settings of the card, read as the YAML that a recipe is."""
    return yaml.safe_load(text.split("```json\n")[1].split("\n```")[0])


def test_the_settings_make_a_recipe_that_asks_for_those_that_were_hashed(
    runs, dataset, tmp_path, monkeypatch
):
    recipe = tmp_path / "again.yaml"
    recipe.write_text(json.dumps(settings_in((dataset / "README.md").read_text())))
    monkeypatch.chdir(runs.parent / "home" / "me")
    asked = asking.read([f"recipe={recipe}"]).config
    for path in runs.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] == "load":
            manifest["settings"]["path"] = SOURCE
        assert settings_of(getattr(asked, manifest["stage"])) == manifest["settings"]


def test_card_and_artifact_have_one_digest(dataset):
    digest = json.loads((dataset.parent / "manifest.json").read_text())["digest"][:16]
    text = (dataset / "README.md").read_text()
    assert f"description: rows {digest}" in text
    assert f"have the digest `{digest}`" in text


def test_another_beta_in_training_is_explained_only_where_it_changes_no_direction(runs, tmp_path):
    words = "every pair has the same coefficient beta/2"
    assert words in written(runs, tmp_path)

    def hinge(manifests: Manifests, facts: dict[str, Any]) -> None:
        manifests["clusters"]["settings"]["loss"] = "hinge"

    def away(manifests: Manifests, facts: dict[str, Any]) -> None:
        manifests["gradients"]["settings"]["reference"] = "org/model"

    assert words not in written(runs, tmp_path, hinge)
    assert words not in written(runs, tmp_path, away)


def test_an_unknown_licence_is_said_and_not_guessed(runs, tmp_path):
    text = written(runs, tmp_path)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "language" not in yaml.safe_load(text.split("---\n")[1])
    assert "The licence of the source is unknown" in text
    named = written(runs, tmp_path, license="cc-by-4.0", language="en")
    assert yaml.safe_load(named.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "as named by whoever made this dataset: cc-by-4.0" in named
    assert "unknown" not in named.split("## Licence")[1].split("## Reproduce")[0]


def test_two_exports_with_other_rows_have_other_cards(runs, tmp_path):
    draft, settings = drafted(runs, tmp_path, as_it_was)
    before = card.text(draft, settings)
    assert card.text(draft, settings) == before
    path = draft.folder / draft.table_files[0]
    rows = pq.read_table(path)
    pq.write_table(rows.take(list(range(rows.num_rows))[::-1]), path)
    after = card.text(draft, settings)
    digest = re.compile(r"description: rows (\w{16})")
    assert digest.search(before)[1] != digest.search(after)[1]


def panel(manifests: Manifests, facts: dict[str, Any]) -> None:
    """A panel of three in place of the given scores; servers that were asked and paid."""
    words = "Is it good?\n{prompt}\n````\n{response}\n# ```` <b>\u202e"
    rubric = {"model": "judge-1", "temperature": 0.5, "repeats": 2, "seed": 7}
    judges = [
        {"kind": "rubric", "weight": 2, "options": rubric},
        {"kind": "rubric", "name": "<i>", "options": {"model": "judge-2", "template": words}},
        {"kind": "preference"},
    ]
    manifests["scores"]["settings"] |= {
        "kind": "panel", "options": {"judges": judges, "combine": "rank"},
    }  # fmt: skip
    asked = {
        "replies": 64, "states": {"ok": 60, "truncated": 4}, "attempts": 66, "tokens_in": 9_000,
        "tokens_out": 700, "usd": 1.25, "models": ["judge-1", "judge-2"],
    }  # fmt: skip
    manifests["scores"]["facts"]["requests"] = asked
    manifests["embeddings"]["facts"]["requests"] = {**asked, "usd": 0.5, "models": ["embedder"]}


def test_each_judge_is_named_with_its_sampling_and_the_words_it_was_sent(runs, tmp_path):
    text = body(written(runs, tmp_path, panel))
    fences = [token.content for token in tokens(text) if token.type == "fence"]
    own, other = [content for content in fences if "(a response)" in content]
    for line in RUBRIC.splitlines():
        assert "{" in line or line in own.splitlines()
    assert "Is it good?" in other
    assert "# ```` <b>\ufffd" in other.splitlines()
    assert "asks `judge-1` at `https://api.openai.com/v1`, at temperature 0.5, top-p 1.0" in text
    assert "seed 7, 8" in text
    assert "weight 2 in the panel" in text
    assert "a ranker of words and length" in text
    assert "**Made with stand-in models.**" in text


def test_money_is_the_account_s_and_prices_are_those_of_the_models_asked(runs, tmp_path):
    prices = Prices("2026-11-20", {"judge-2": Price(2.5, 10), "other": Price(1, 1)}, "prices.yaml")
    text = body(written(runs, tmp_path, panel, prices))
    assert (
        "| score | `judge-1` `judge-2` | 64 | 60 ok, 4 truncated | 66 | 9,000 | 700 | 1.2500 |"
        in text
    )
    assert "Together 1.7500 US dollars" in text
    assert "prices of 2026-11-20" in text
    assert "| `judge-2` | 2.5 | 10 | 1.0 |" in text
    assert "other" not in re.findall("^[|] `(.+?)`", text, re.MULTILINE)

    def unpriced(manifests: Manifests, facts: dict[str, Any]) -> None:
        panel(manifests, facts)
        manifests["scores"]["facts"]["requests"]["usd"] = None

    text = body(written(runs, tmp_path, unpriced))
    assert "What they cost is unknown" in text
    assert "| 700 | unknown |" in text


def test_an_export_that_asked_nobody_says_so(dataset):
    assert "No request was sent" in (dataset / "README.md").read_text()


def test_the_balance_after_the_trainer_s_cut_is_told(runs, tmp_path):
    def cut(manifests: Manifests, facts: dict[str, Any]) -> None:
        facts["formats"] = {
            "trl": {
                "max_length": 1024, "pairs": 20, "cut": 3, "dropped": 2, "refused": 1,
                "prompts": 9, "mean_depth": 2.22, "gini": 0.31, "rule": "TRL drops long prompts.",
            },
            "openai": {"why": "no tokenizer", "refused": 0},
        }  # fmt: skip

    text = body(written(runs, tmp_path, cut, formats=["trl", "listwise"]))
    assert "in the trainers' own forms, written for trl, listwise; the table above says" in text
    assert "`listwise` holds all scored responses" in text
    assert "same pairs" not in text
    assert "| `trl` | 1,024 | 20 pairs | 3 | 2 | 1 | 9 | 2.22 | 0.31 |" in text
    assert "`trl`: TRL drops long prompts." in text
    assert "| `openai` |" not in text


def test_formats_whose_lengths_are_not_known_refer_to_no_table(runs, tmp_path):
    def unread(manifests: Manifests, facts: dict[str, Any]) -> None:
        facts["formats"] = {"kto": {"why": "no tokenizer", "refused": 3}}

    text = body(written(runs, tmp_path, unread, formats=["kto"]))
    assert "table above" not in text
    assert "written for kto; what one of them cannot hold stands in its `left_out.parquet`" in text
    assert "listwise" not in text


def test_typed_control_tokens_that_formats_break_are_told(runs, tmp_path):
    def typed(manifests: Manifests, facts: dict[str, Any]) -> None:
        facts["target"]["special_in_text"] = 2

    words = "A control token typed in a text has an invisible space in it there"
    assert words in written(runs, tmp_path, typed, formats=["trl"])
    assert words not in written(runs, tmp_path, formats=["trl"])
    kept = written(runs, tmp_path, typed, formats=["trl"], special_tokens="keep")
    assert words not in kept


def test_one_is_not_written_as_many(runs, tmp_path):
    def one(manifests: Manifests, facts: dict[str, Any]) -> None:
        facts |= dict.fromkeys(("pairs", "prompts", "pool"), 1)

    said = "\n1 preference pair for 1 prompt, chosen out of 1 candidate pair.\n"
    assert said in written(runs, tmp_path, one)


def nested(manifests: Manifests, facts: dict[str, Any]) -> None:
    """A stand-in two panels deep."""
    inner = {"judges": [{"kind": "preference"}], "combine": "rank"}
    rubric = {"kind": "rubric", "options": {"model": "judge-1"}}
    judges = [rubric, {"kind": "panel", "options": inner}]
    manifests["scores"]["settings"] |= {
        "kind": "panel", "options": {"judges": judges, "combine": "rank"},
    }  # fmt: skip


def test_card_and_report_name_the_same_stand_ins_however_deep_the_panel(
    runs, tmp_path, monkeypatch
):
    text = body(written(runs, tmp_path, nested))
    inputs = reporting.artifacts(tmp_path / "report")
    nested({name: used.manifest for name, used in inputs.items()}, {})
    monkeypatch.setattr(reporting, "artifacts", lambda folder: inputs)
    page = reporting.page_of(tmp_path, pair_map.pair_table(inputs), ReportConfig()).read_text()
    warning = page.split("Stand-in models")[1].split("</p>")[0]
    told = re.findall("^The judge `(.+)` is (.+)[.]$", text, re.MULTILINE)
    assert told == [("preference", "a ranker of words and length, fitted on the source's own "
                     "preferences")]  # fmt: skip
    names = re.findall(r"The judge <code><bdi>(.+)</bdi></code> is (.+)\.\n", warning)
    assert [(name, html.unescape(sort)) for name, sort in names] == told
    assert ("policy is a small model" in text) == ("policy was trained from nothing" in warning)


def test_a_model_that_was_given_is_no_stand_in(runs, tmp_path):
    def given_model(manifests: Manifests, facts: dict[str, Any]) -> None:
        manifests["policy"]["settings"] |= {"kind": "given", "model": "lab/model", "revision": "r"}

    text = body(written(runs, tmp_path, given_model))
    assert "stand-in" not in text
    assert "**Policy**: `lab/model` at revision `r`, as it is." in text
    assert "stand-in" in body(written(runs, tmp_path))


def test_figures_beyond_the_bounds_come_first(dataset):
    text = (dataset / "README.md").read_text()
    flagged = text.index("- verdict: the longer response wins 100.0 % of")
    assert flagged < text.index("| measure | value |")


def test_depths_splits_and_authors_add_up(dataset):
    text = (dataset / "README.md").read_text()
    rows = pq.read_table(dataset / "train.parquet").to_pylist()
    rows += pq.read_table(dataset / "test.parquet").to_pylist()
    depths = re.findall(r"^[|] (\d+) [|] (\d+) [|] (\d+) [|]$", text, re.MULTILINE)
    assert sum(int(depth) * int(after) for depth, _, after in depths) == len(rows)
    assert sum(int(after) for _, _, after in depths) == len({row["prompt_id"] for row in rows})
    written_by = re.findall(r"^[|] \S.* [|] (\d+) [|] (\d+) [|]$", text.split("### Who wrote")[1],
                            re.MULTILINE)  # fmt: skip
    assert sum(int(chosen) for chosen, _ in written_by) == len(rows)
    assert sum(int(rejected) for _, rejected in written_by) == len(rows)


def test_only_the_largest_authors_are_listed(runs, tmp_path):
    draft, settings = drafted(runs, tmp_path, as_it_was)
    for name in draft.table_files:
        rows = pq.read_table(draft.folder / name)
        names = [f"author {number}" for number in range(rows.num_rows)]
        place = rows.schema.get_field_index("author_chosen")
        pq.write_table(rows.set_column(place, "author_chosen", [names]), draft.folder / name)
    text = card.text(draft, settings).split("### Who wrote")[1].split("##")[0]
    rows = re.findall(r"^[|] (\S.*) [|] (\d+) [|] (\d+) [|]$", text, re.MULTILINE)
    assert len(rows) == authors.SHOWN + 1
    assert rows[-1][0] == "all others"
    total = draft.read(["pair_id"]).num_rows
    assert [sum(int(row[side]) for row in rows) for side in (1, 2)] == [total, total]
    assert f"of {number_of_authors(draft)} authors" in text


def number_of_authors(draft: Draft) -> int:
    sides = draft.read(["author_chosen", "author_rejected"])
    return len({name for side in sides.columns for name in side.to_pylist()})


def test_every_column_is_explained():
    for column in figures.columns(export.schema(export.ExportConfig())):
        assert column["meaning"], f"say in cards.figures.COLUMNS what {column['name']} means"


def test_the_template_comes_with_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    inside = Path(included[str(card.template_path().relative_to(ROOT))])
    assert ROOT / inside == Path(card.__file__).parent / "data_cards" / "TEMPLATE.md"
