"""Settings: every error at once, before any work, in one line each."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
from helpers import environment, run

from bpo_data.errors import UserError
from bpo_data.pipelines import ablation
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.manual import describe, documented

FILES = ("load.kind=topics", "score.kind=verifier")


def problems_of(*arguments: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        settings.read(arguments)
    return str(caught.value).splitlines()


def test_defaults_then_recipe_then_command_line(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "select: {keep: 30, seed: 7}\nload: {kind: topics}\nscore: {kind: verifier}\n"
    )
    asked = settings.read([f"recipe={recipe}", "select.keep=40"])
    assert asked.config.select.keep == 40
    assert asked.config.select.seed == 7
    assert asked.config.select.share == 0.5
    assert asked.stages == tuple(settings.STAGES)


def test_without_a_recipe_the_quickstart_runs():
    asked = settings.read([])
    assert asked.recipe == "quickstart"
    assert asked.config.load.kind == "topics"


def test_all_errors_come_at_once():
    found = problems_of(
        "cluster.kk=50", "select.keep=many", "embed.kind=tfidf_svt", "stage=alocate", "pair.scale=x"
    )
    assert [
        line for line in found if "There is no setting cluster.kk. Did you mean cluster.k?" in line
    ]
    assert [line for line in found if "select.keep=many: give a whole number." in line]
    assert [
        line
        for line in found
        if "embed.kind=tfidf_svt is not known. Did you mean tfidf_svd?" in line
    ]
    assert [line for line in found if "There is no stage alocate. Did you mean allocate?" in line]
    assert [line for line in found if "pair.scale=x" in line]
    assert len(found) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("selct.keep=3",), "There is no section selct (in selct.keep). Did you mean select?"),
        (("recipe=quikstart",), "There is no recipe quikstart. Did you mean quickstart?"),
        (("keep=3",), "There is no word keep."),
        (("select.keep",), "write section.key=value"),
        (("allocate.budget=1700", "select.keep=200"), "allocate.budget=1700 is above the pool"),
        (("allocate.budget=300", "select.keep=400"), "allocate.budget=300 is below"),
        (("gradients.rank=2.5",), "gradients.rank=2.5: give a whole number."),
        (("allocate.floor=perhaps",), "allocate.floor=perhaps: give true or false."),
        (("embed.options.dimm=3",), "embed.options.dimm is not an option"),
        (("embed.kind=nowhere:Thing",), "embed.kind=nowhere:Thing cannot be imported"),
        (("sft.kind=given",), "sft.model"),
        (("load.kind=files",), "load.path is empty"),
        (("load.kind=files", "load.path=nothing.jsonl"), "nothing.jsonl"),
        (("load.kind=hub", "load.columns.promt=q"), "load.columns.promt is no column we use."),
        (("load.kind=hub", "load.options.roles.human=boss"), "load.options.roles.human=boss"),
        (("augment.client=openai",), "augment.model is empty"),
        (("runtime.device=tpu",), "runtime.device=tpu"),
        (("evaluate.kind=verifyer",), "evaluate.kind=verifyer is not known. Did you mean verifier"),
        (("evaluate.options.noise=1",), "evaluate.options without a judge that has them"),
        (("evaluate.kind=verifier", "evaluate.options.nose=1"), "evaluate.options.nose is not an"),
        (("score.options.noise=-1",), "noise=-1: a standard deviation is 0 or more"),
        (("select.keep=[",), "select.keep=[: give a whole number."),
        (("cluster.beta=.nan",), "cluster.beta=.nan: give a number."),
        (("embed.options.dim=2.5",), "embed.options.dim=2.5: give a whole number."),
        (("embed.options=[1",), "embed.options=[1: give settings by name"),
        (("allocate.kind=:x",), "allocate.kind=:x cannot be imported"),
        (("allocate.kind=os:sep",), "allocate.kind=os:sep cannot be imported"),
        (("load.options.pool_prompts=abc",), "load.options.pool_prompts=abc: give a whole number."),
        (("load.kind=files", "load.path=data${x}.jsonl"), "data${x}.jsonl"),
        (("score.kind=given",), "Set augment.client=replay"),
        (("sft.kind=given", "sft.model=/nonexistent/model"), "sft.model=/nonexistent/model"),
        (("augment.client=openai", "augment.model=m", "augment.base_url=foo://x"), "foo://x"),
        (("plan=maybe",), "plan=maybe"),
        (("train.loss=sigmoyd",), "sigmoid"),
    ],
)
def test_each_mistake_is_named_with_a_way_out(arguments, words):
    assert any(words in line for line in problems_of(*arguments)), problems_of(*arguments)


def test_a_text_setting_keeps_its_text():
    asked = settings.read([*FILES, "augment.model=1e5", "augment.key_variable=yes"])
    assert asked.config.augment.model == "1e5"
    assert asked.config.augment.key_variable == "yes"


def test_numbers_are_read_as_people_write_them():
    asked = settings.read(["select.keep=0100", "allocate.budget=0120", "cluster.beta=1e-2"])
    assert asked.config.select.keep == 100
    assert asked.config.cluster.beta == 0.01


def test_a_password_in_an_address_is_never_shown():
    found = problems_of(
        "augment.client=openai", "augment.model=m", "augment.base_url=http://bob:hunter2@host/v1"
    )
    assert any("augment.base_url holds a user name" in line for line in found)
    assert "hunter2" not in "".join(found)


def test_option_text_may_hold_colons_and_braces():
    asked = settings.read(
        ["score.kind=rubric", "score.options.model=a: b: c ${x}"],
    )
    assert asked.config.score.options["model"] == "a: b: c ${x}"


def test_a_wrong_recipe_is_the_only_mistake_named():
    assert len(problems_of("recipe=quikstart")) == 1


def test_column_names_keep_their_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"no": "question", "yes": "answer"}\n')
    asked = settings.read(
        ["load.kind=files", f"load.path={path}", "load.columns.prompt=no", "load.options={}"]
    )
    assert asked.config.load.columns == {"prompt": "no"}


@pytest.mark.parametrize(
    "text", ["[1, 2]", "load: 5", "load: {path: a, path: b}", "a: [", "x: {y: 1}"]
)
def test_a_broken_recipe_is_one_line(tmp_path, text):
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(text)
    assert len(problems_of(f"recipe={recipe}")) >= 1


def test_a_recipe_runs_no_code(tmp_path):
    recipe = tmp_path / "evil.yaml"
    recipe.write_text("load: {path: !!python/object/apply:os.system ['touch owned']}")
    assert problems_of(f"recipe={recipe}")
    assert not list(tmp_path.glob("owned"))


def test_mistakes_end_with_status_2_and_no_traceback(tmp_path):
    result = run("cluster.kk=50", f"runtime.folder={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "bpo_data: There is no setting cluster.kk. Did you mean cluster.k? "
        "`--help cluster` lists them."
    )
    assert not list(tmp_path.iterdir())


def test_help_lists_every_stage_and_every_recipe():
    result = run("--help")
    assert result.returncode == 0
    for name in (*settings.STAGES, *settings.recipes()):
        assert name in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--help", "select"], ["cluster.kk=50"]])
def test_help_and_mistakes_load_no_heavy_package(arguments):
    code = (
        "import sys; from bpo_data.pipelines.run import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'trl', 'datasets', 'faiss', 'sklearn', 'openai', 'scipy'};"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment()
    )
    assert result.stdout.splitlines()[-1] == "HEAVY []"


def test_every_setting_has_a_sentence_and_help_shows_it():
    for section in dataclasses.fields(settings.Config):
        kind = type(getattr(settings.Config(), section.name))
        for name, _, meaning in documented(kind):
            assert meaning.endswith((".", "?")), f"{section.name}.{name} has no sentence below it"
            assert f"{section.name}.{name}=" in describe(section.name)


def test_help_of_a_section_shows_what_the_recipe_makes_of_it():
    found = describe("train", "mine", {"train.steps": 9, "train.beta": 0.1, "train.weights": "none",
                                       "train.loss_options.lam": 2, "sft.steps": 7})  # fmt: skip
    lines = found.splitlines()
    assert "  train.steps=0   (mine: 9)" in lines
    assert "  train.loss_options={}   (mine: {'lam': 2})" in lines
    assert sum("(mine: " in line for line in lines) == 2  # the others are the defaults
    assert "(quickstart: 128)" in run("--help", "train").stdout
    assert "(own_data: 200)" in run("--help", "sft", "recipe=own_data").stdout


def test_rounds_are_no_stage_and_a_decay_without_a_mean_is_refused():
    with pytest.raises(UserError, match="Say rounds=2"):
        settings.read(["stage=rounds"])
    with pytest.raises(UserError, match=r"rounds\.decay=0\.3 has no use"):
        settings.read(["rounds=2", "rounds.decay=0.3"])
    settings.read(["rounds=2", "rounds.decay=0.3", "rounds.reference=ema"])


def test_every_recipe_is_read_without_mistakes(tmp_path):
    given = tmp_path / "rows.jsonl"
    given.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    for name in settings.recipes():
        values = settings.read_recipe(name)
        arguments = [f"recipe={name}"]
        if settings.is_ablation(arguments):
            ablation.read(name, arguments)
            continue
        if values.get("load.kind", "files") == "files":
            arguments.append(f"load.path={given}")
        settings.read(arguments)


def test_recipes_say_what_they_need_and_whose_the_numbers_are():
    for name in settings.recipes():
        text = (settings.recipe_folder() / f"{name}.yaml").read_text()
        assert re.search(r"^#   python -m bpo_data", text, re.MULTILINE), name
        assert "our choice" in text, name
