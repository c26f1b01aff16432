"""Arms against each other: settings of each, what they share, and the figures of the table."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import time
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from helpers import TINY, run, start
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.errors import UserError
from bpo_data.pipelines import ablation, ablation_page
from bpo_data.pipelines.ablation import Ablation, Outcome
from bpo_data.pipelines.ablation_figure import axis
from bpo_data.statistics import holm

RECIPE = """
ablation:
  base: quickstart
  about: What a judge's noise does.
  seeds: 2
  first_seed: 3
  worlds:
    sure: {score: {kind: verifier}}
    unsure: {score: {kind: verifier, options: {noise: 2.0}}, evaluate: {kind: verifier}}
  arms:
    uniform: {allocate: {kind: uniform}}
    four: {allocate.kind: uniform, augment.responses: 4}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """Folder, command line and output of a whole ablation of hand's breadth."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "mine.yaml").write_text(RECIPE)
    settings = [one for one in TINY if not one.startswith(("score.", "allocate.", "load.kind"))]
    arguments = [f"recipe={folder}/mine.yaml", f"runtime.folder={folder}/runs", *settings]
    arguments += ["allocate.budget=48", f"ablation.card={folder}/cards/mine.md"]
    result = run(*arguments, "ablation.processes=1")
    assert result.returncode == 0, result.stderr
    return folder, arguments, result.stdout


def test_every_arm_runs_in_every_world_at_equal_pairs_and_updates(made):
    folder, _, _ = made
    rows = pq.read_table(folder / "runs/ablation/mine/outcomes.parquet").to_pylist()
    assert [(row["world"], row["arm"], row["seed"]) for row in rows] == list(
        product(("sure", "unsure"), ("four", "uniform"), (3, 4))
    )
    assert {row["pairs"] for row in rows} == {48}
    assert {row["updates"] for row in rows} == {4}
    assert all(row["judged"] > 90 for row in rows if row["arm"] != "four")
    assert all(row["judged"] <= 96 for row in rows if row["arm"] == "four")


def test_arms_of_a_world_share_what_they_have_in_common(made):
    folder, _, _ = made
    count = {
        stage: len(list((folder / "runs").glob(f"{stage}-*/manifest.json")))
        for stage in ("load", "sft", "augment", "gradients", "allocate", "train")
    }
    assert count == {"load": 2, "sft": 2, "augment": 4, "gradients": 4, "allocate": 8, "train": 8}


def test_an_unsure_judge_errs_alike_each_time_and_otherwise_with_another_seed(made):
    folder, _, _ = made
    points: dict[tuple[int, float], dict[str, float]] = {}
    for path in (folder / "runs").glob("score-*/manifest.json"):
        options = json.loads(path.read_text())["settings"]["options"]
        found = pq.read_table(path.with_name("scores.parquet"))
        points.setdefault((options["seed"], options.get("noise", 0.0)), {}).update(
            zip(found["response_id"].to_pylist(), found["score"].to_pylist(), strict=True)
        )
    off = {
        seed: {name: points[seed, 2.0][name] - sure for name, sure in points[seed, 0.0].items()}
        for seed in (3, 4)
    }
    errors = [*off[3].values(), *off[4].values()]
    assert 1.5 < statistics.stdev(errors) < 2.5
    both = off[3].keys() & off[4].keys()
    assert all(off[3][name] != off[4][name] for name in both)


def test_a_judge_of_evaluates_own_is_not_the_unsure_one(made):
    """Points of the program have two decimals; the unsure judge's are off by any number."""
    folder, _, _ = made
    own = [
        path
        for path in (folder / "runs").glob("evaluate-*/manifest.json")
        if json.loads(path.read_text())["settings"]["kind"] == "verifier"
    ]
    assert len(own) == 4
    for path in own:
        points = pq.read_table(path.with_name("wins.parquet"))["score_trained"].to_pylist()
        assert all(abs(one - round(one, 2)) < 1e-5 for one in points)


def test_the_card_stands_by_itself(made):
    folder, _, _ = made
    page = (folder / "cards/mine.md").read_text()
    assert "What a judge's noise does." in page
    for world in ("sure", "unsure"):
        assert f"](mine_{world}.svg)" in page
        drawn = ElementTree.parse(folder / f"cards/mine_{world}.svg")
        texts = {one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
        assert {"four", "0"} <= texts


def test_a_finished_ablation_is_found_again_by_as_many_processes_as_there_are_seeds(made):
    folder, arguments, first = made
    before = sorted((folder / "runs").glob("*-*/manifest.json"))
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first
    assert sorted((folder / "runs").glob("*-*/manifest.json")) == before


def test_the_page_says_how_it_was_made(made):
    folder, _, output = made
    page = (folder / "runs/ablation/mine/ablation.md").read_text()
    assert "recipe=" in page
    assert "`uniform`: `allocate.kind=uniform`" in page
    assert "seeds 3 to 4" in page
    table = [line for line in output.splitlines() if line.startswith(("uniform ", "four "))]
    assert len(table) == 4
    for line in table:
        points = re.search(r"\d\.\d{3} \[", line)[0]
        assert points in page


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGTERM, "embed"),
        # A process of a seed imports for long before it trains.
        pytest.param(signal.SIGTERM, "sft", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "sft", marks=pytest.mark.slow),
    ],
)
def test_its_processes_end_with_it(tmp_path, number, stage):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    settings = [f"recipe={tmp_path}/mine.yaml", f"runtime.folder={tmp_path}/runs"]
    logs = [tmp_path / f"runs/ablation/seed-{seed}.log" for seed in (3, 4)]
    with start(*settings, start_new_session=True) as process:
        while not all(log.exists() and stage in log.read_text() for log in logs):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(90)  # it finishes the update under way, on a busy machine after its imports
        assert process.returncode == (130 if number == signal.SIGTERM else -number)
        assert "Traceback" not in process.stderr.read()
        left = time.monotonic() + 20
        while group_of(process.pid):
            assert time.monotonic() < left, "a process of a seed goes on alone"
            time.sleep(0.1)


def group_of(session: int) -> list[str]:
    """Processes of a session that still run."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True
    )
    return [state for state in found.stdout.split() if not state.startswith("Z")]


def outcome(arm: str, seed: int, points: float) -> Outcome:
    return Outcome("quickstart", arm, seed, points, 0.6, points + 1, points - 1, 48, 20, 96, 4, 0.5)


def test_differences_are_paired_by_seed():
    found = Ablation(arms={"uniform": {}, "other": {}}, against="uniform")
    base, gain = [4.0, 5.0, 7.0], [0.1, 0.2, 0.3]
    outcomes = [outcome("uniform", seed, points) for seed, points in enumerate(base)]
    outcomes += [outcome("other", seed, base[seed] + gain[seed]) for seed in (2, 0, 1)]
    rows = {row.arm: ablation_page.cells(row) for row in ablation_page.compared(found, outcomes)}
    half = 4.303 * statistics.stdev(gain) / 3**0.5  # Student's t with 2 degrees of freedom
    assert rows["other"][2] == f"+0.200 [{0.2 - half:+.3f}, {0.2 + half:+.3f}]"
    assert rows["uniform"][2] == ""
    assert list(rows) == ["other", "uniform"], "the best first"


def test_what_is_said_in_short_follows_from_the_intervals():
    gains = {"uniform": 0.0, "good": 0.3, "bad": -0.3, "same": 0.0}
    found = Ablation(arms={name: {} for name in gains}, against="uniform")
    wobble = [0.01, -0.02, 0.03, -0.01]
    outcomes = [
        outcome(arm, seed, 5 + gain + (wobble[(seed + place) % 4] if gain or place else 0))
        for place, (arm, gain) in enumerate(gains.items())
        for seed in range(4)
    ]
    said = ablation_page.in_short(found, "w", ablation_page.compared(found, outcomes))
    assert "3 arms beside `uniform`" in said
    assert "excludes zero: `good` +0.302" in said
    assert "Not to be told from it: `same`" in said
    assert "Worse: `bad`" in said
    assert "these still differ: `good`, `bad`." in said
    advice = ablation_page.for_a_user(found, {"w": ablation_page.compared(found, outcomes)})
    assert "never worse: `good`. Sometimes worse and never better: `bad`." in advice


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_its_definition(values):
    names = [str(place) for place in range(len(values))]
    found = holm({**dict(zip(names, values, strict=True)), "none": None})
    for level in (0.01, 0.05, 0.2):
        # Step down: reject the least while p <= level / how many are left; stop at the first not.
        rejected = set()
        for place, value in enumerate(sorted(values)):
            if value > level / (len(values) - place):
                break
            rejected.add(value)
        for name, value in zip(names, values, strict=True):
            if abs(found[name] - level) > 1e-9:
                assert (found[name] < level) == (value in rejected)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_the_axis_holds_all_values_in_a_few_round_steps(values):
    step, low, high = axis(values)
    assert low <= min(0, *values) + 1e-9
    assert high >= max(0, *values) - 1e-9
    assert 1 <= round((high - low) / step) <= 11
    assert f"{step:e}"[0] in "125"


def test_head_and_tail_are_the_topics_asked_most_and_least():
    pool = [("a", 5), ("b", 4), ("c", 3), ("d", 2), ("e", 1), ("f", 1)]
    prompts = [{"split": "pool", "topic": name} for name, count in pool for _ in range(count)]
    prompts += [{"split": "test", "topic": "f"}] * 50
    wins = {"by_topic": {name: {"trained": float(place)} for place, (name, _) in enumerate(pool)}}
    assert ablation.head_and_tail(prompts, wins) == (0.5, 4.5)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("ablation: {arms: {uniform: {}}}", "fewer than 2 arms"),
        ("ablation: {arms: {a: {}, b: {}}}", "ablation.against=uniform is no arm"),
        ("ablation: {seed: 3, arms: {uniform: {}, b: {}}}", "There is no setting ablation.seed"),
        ("ablation: {arms: {uniform: {}, b: {allocate: {kin: x}}}}", "arm b: There is no setting"),
        ("ablation: {arms: {uniform: {}, b: {allocate: {kind: cente}}}}", "Did you mean center?"),
        ("ablation: {seeds: many, arms: {uniform: {}, b: {}}}", "ablation.seeds=many: give a"),
        ("ablation: {worlds: {x: {a.b: 1}}, arms: {uniform: {}, b: {}}}", "world x, arm b: There"),
        ("ablation: {card: x.txt, arms: {uniform: {}, b: {}}}", "name a Markdown file"),
        ("ablation: {base: nothing, arms: {uniform: {}, b: {}}}", "There is no recipe nothing"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(tmp_path, recipe, said):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe)
    with pytest.raises(UserError, match=re.escape(said)):
        ablation.read(str(path), [f"recipe={path}"])


def test_the_shipped_recipe_holds_ten_arms_and_more_at_equal_pairs():
    found, shared = ablation.read("ablation", ["recipe=ablation"])
    assert len(found.arms) >= 10
    (first, *_) = found.all_worlds()
    asked = [ablation.arm_settings(found, first, arm, shared, 0).config for arm in found.arms]
    assert {one.allocate.budget for one in asked} == {512}
    assert {(one.train.steps, one.train.batch) for one in asked} == {(128, asked[0].train.batch)}
    assert {one.sft.seed for one in asked} == {0}


def test_a_plan_is_refused_and_not_run():
    with pytest.raises(UserError, match="plan= has no use with an ablation"):
        ablation.read("ablation", ["recipe=ablation", "plan=true"])


def test_quick_is_two_seeds_of_the_first_world():
    asked = Ablation(seeds=9, first_seed=4, worlds={"one": {}, "two": {}}, quick=True)
    assert list(asked.all_seeds()) == [4, 5]
    assert list(asked.all_worlds()) == ["one"]
    assert list(Ablation(seeds=1, quick=True).all_seeds()) == [0]
    assert list(Ablation(base="mine").all_worlds()) == ["mine"]


def test_what_is_told_goes_before_the_seed_and_an_arm_before_all():
    asked = Ablation(
        worlds={"w": {"pair": {"seed": 7, "per_prompt": 3}, "score": {"options": {"noise": 1.0}}}},
        arms={"a": {"pair.per_prompt": 4}, "b": {"score.options": {"seed": 5}}},
    )
    first, second = (
        ablation.arm_settings(asked, "w", arm, {"sft.seed": 9}, 4).config for arm in ("a", "b")
    )
    assert (first.sft.seed, first.pair.seed, first.load.seed) == (9, 7, 4)
    assert (first.pair.per_prompt, second.pair.per_prompt) == (4, 3)
    assert first.score.options == {"noise": 1.0, "seed": 4}
    assert second.score.options["seed"] == 5


SHORT = "uniform: {allocate: {kind: uniform}}, margin: "


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("arms: [uniform, margin]", "ablation.arms=['uniform', 'margin']: give settings by name"),
        (f"arms: {{{SHORT}5}}", "ablation.arms.margin=5: give settings by name"),
        (f"arms: {{{SHORT}[a]}}", "ablation.arms.margin=['a']: give settings by name"),
        ("arms: {uniform: , a/b: }", "ablation.arms.a/b: use letters"),
        (f"worlds: [x], arms: {{{SHORT}}}", "ablation.worlds=['x']: give settings by name"),
        (f"worlds: {{x: 3}}, arms: {{{SHORT}}}", "ablation.worlds.x=3: give settings by name"),
        (f"worlds: {{'../x': }}, arms: {{{SHORT}}}", "ablation.worlds.../x: use letters"),
        (f"card: /dev/null/x.md, arms: {{{SHORT}}}", "ablation.card=/dev/null/x.md cannot be"),
    ],
)
def test_arms_and_worlds_of_another_shape_are_named(tmp_path, section, wrong):
    (tmp_path / "mine.yaml").write_text(f"ablation: {{{section}}}\n")
    with pytest.raises(UserError) as caught:
        ablation.read(f"{tmp_path}/mine.yaml", [])
    assert wrong in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_arm_is_published(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"ablation: {{arms: {{{SHORT}}}}}\n")
    with pytest.raises(UserError, match="no arm is to be published"):
        ablation.read(f"{tmp_path}/mine.yaml", ["export.push_to_hub=a/b"])


def test_an_arm_without_settings_is_the_base_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"ablation: {{arms: {{{SHORT}}}}}\n")
    found, shared = ablation.read(f"{tmp_path}/mine.yaml", [])
    assert found.arms["margin"] == {}
    assert ablation.arm_settings(found, "quickstart", "margin", shared, 0).config.allocate.budget


def test_a_world_without_a_name_has_that_of_its_base_recipe(tmp_path):
    recipe = ablation.settings.recipe_folder() / "quickstart.yaml"
    assert list(Ablation(base=str(recipe)).all_worlds()) == ["quickstart"]


def test_options_given_as_text_take_the_seed_unless_they_have_one():
    one = Ablation(arms={"uniform": {}})
    for options, seed in (("{seed_prompts: 300}", 7), ("{seed: 5, seed_prompts: 300}", 5)):
        asked = ablation.arm_settings(one, "quickstart", "uniform", {"load.options": options}, 7)
        assert asked.config.load.options["seed"] == seed


def test_its_settings_are_documented():
    from bpo_data.pipelines.manual import describe

    assert "ablation.first_seed=0" in describe("ablation")
