"""Online rounds: the first is offline training, each later one begins where the last ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import TINY
from preferring import Table, dataset, do_train, log_prob, make_started, weights
from safetensors.torch import load_file

from bpo_data.artifacts import Artifact
from bpo_data.errors import UserError
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.command import Command
from bpo_data.pipelines.outlook import Standing
from bpo_data.pipelines.planning import plan
from bpo_data.pipelines.running import Run
from bpo_data.pipelines.saying import Voice
from bpo_data.pipelines.steps import steps
from bpo_data.pipelines.tree import lines
from bpo_data.report.costs import called, stage_rows
from bpo_data.stages.augment import AugmentConfig, row_seed
from bpo_data.stages.blend import blend
from bpo_data.stages.rounds import row_of

LOG_2 = math.log(2)
SMALL = (*TINY, "sft.steps=20", "augment.responses=4", "train.batch=64",
         "train.learning_rate=0.001", "train.warmup_steps=0", "train.beta=0.5")  # fmt: skip


def go(folder: Path, *words: str, stage: str = "train") -> Run:
    torch.set_num_threads(1)
    asked = settings.read([f"stage={stage}", f"runtime.folder={folder}", *SMALL, *words])
    run = Run(asked, Voice("json"))
    run.go()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Run:
    return go(folder)


@pytest.fixture(scope="module")
def three(folder: Path, offline: Run) -> Run:
    return go(folder, "rounds=3", "rounds.evaluate_each=true", stage="report")


class Asked(Artifact):
    """An artifact of which a table and facts are known."""

    def __init__(self, rows: pa.Table, facts: dict[str, Any]) -> None:
        super().__init__(Path("made"), {"facts": facts})
        self.rows_of_it = rows

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return self.rows_of_it.select(columns or self.rows_of_it.column_names)


def table(score: pa.Array) -> pa.Table:
    """Responses of a policy, with their points."""
    ids = [f"p/{number:02d}" for number in range(len(score))]
    return pa.table({"response_id": ids, "author": ["policy"] * len(ids), "score": score})


def model_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.folder / "model/model.safetensors")


def first_loss(artifact: Artifact) -> float:
    return float(artifact.facts["first_loss"])


def rows(run: Run, key: str, name: str) -> list[Any]:
    found: list[Any] = run.made[key].table([name])[name].to_pylist()
    return found


def test_the_first_of_several_rounds_is_offline_training_and_is_not_made_again(offline, three):
    of_offline = {table: artifact.folder for table, artifact in offline.made.items()}
    first = {key.removesuffix(".1"): one.folder for key, one in three.made.items() if ".1" in key}
    assert {table: of_offline[table] for table in first if table != "wins"} == {
        table: where for table, where in first.items() if table != "wins"
    }
    told = {(row["stage"], row["round"]): row["verb"] for row in three.voice.answer["stages"]}
    assert told["train", 1] == "kept"
    assert told["train", 2] == told["augment", 3] == "made"


def test_one_round_asks_for_the_same_work_as_no_word_of_rounds(folder):
    plain = settings.read([f"runtime.folder={folder}", *SMALL])
    one = settings.read([f"runtime.folder={folder}", *SMALL, "rounds=1", "rounds.reference=ema"])
    assert steps(one.stages, one.config) == steps(plain.stages, plain.config)


def test_at_each_switch_the_loss_is_log_2(three):
    for number in (1, 2, 3):
        assert first_loss(three.made[f"trained.{number}"]) == pytest.approx(LOG_2, abs=1e-6)


def test_a_later_round_is_offline_training_of_its_own_policy_on_its_own_pairs(three, tmp_path):
    again = do_train(
        tmp_path, three.made["trained.1"].folder, three.made["dataset.2"].table(),
        steps=4, batch=64, learning_rate=1e-3, beta=0.5,
    )  # fmt: skip
    assert weights(tmp_path) == weights(three.made["trained.2"].folder)
    assert again.facts["round"] == 2


def test_each_round_samples_anew_from_the_policy_it_trains(three):
    drawn = [rows(three, f"responses.{number}", "text") for number in (1, 2, 3)]
    same = np.mean([one == other for one, other in zip(drawn[0], drawn[1], strict=True)])
    assert same < 0.5
    assert drawn[1] != drawn[2]
    config = AugmentConfig()
    assert len({row_seed(config, "p/00", number) for number in range(4)}) == 4
    assert three.made["responses.3"].manifest["inputs"]["policy"] == (
        three.made["trained.2"].digest
    )


def test_the_table_of_rounds_says_what_the_artifacts_say(three):
    found = three.made["rounds"].table().to_pylist()
    assert [row["round"] for row in found] == [1, 2, 3]
    for row in found:
        number = row["round"]
        assert row["policy"] == three.made[f"trained.{number}"].folder.name
        assert row["points"] == pytest.approx(np.mean(
            [score for score in rows(three, f"scores.{number}", "score") if score is not None]
        ))  # fmt: skip
        wins = three.made[f"wins.{number}"].facts
        assert row["trained_points"] == wins["score_trained"]["mean"]
    html = (three.made["figures"].folder / "report.html").read_text(encoding="utf-8")
    assert "Round by round" in html
    assert html.count(three.made["trained.2"].folder.name) >= 2, "the table, and the costs"


def test_the_costs_on_the_page_name_every_step_once_in_the_order_of_the_run(three):
    names = [step.name for step in three.steps if step.stage != "report"]
    report = next(step for step in three.steps if step.stage == "report")
    told = [row["stage"] for row in stage_rows(three.inputs(report))]
    assert sorted(told) == sorted("evaluate 3" if name == "evaluate" else name for name in names)
    assert [told.index(one) for one in ("load", "sft", "augment 1", "train 1", "augment 2")] == (
        sorted(told.index(one) for one in ("load", "sft", "augment 1", "train 1", "augment 2"))
    )
    assert told.index("train 2") < told.index("augment 3")
    html = (three.made["figures"].folder / "report.html").read_text(encoding="utf-8")
    lost = html[html.index('<section id="lost"') :]
    assert "pair 1" in lost, "a note says which round it is of"
    assert f"Dataset <code>{three.made['dataset'].folder.name}</code>" in html


def test_what_a_round_costs_is_without_its_evaluation():
    found = table(score=pa.array([1.0, 2.0], pa.float32()))
    facts = {"pairs": 1, "prompts": 1, "updates": 1, "first_loss": 0.7, "margin": 0.0,
             "accuracy": 1.0, "chosen_over_reference": 0.0}  # fmt: skip

    def asked(usd: float) -> Asked:
        return Asked(found, facts | {"requests": {"replies": 2, "usd": usd}})

    made = {"responses": Asked(found, {}), "scores": asked(0.25), "dataset": Asked(found, facts),
            "trained": Asked(found, facts), "wins": asked(8.0)}  # fmt: skip
    assert row_of(1, made)["usd"] == 0.25


def test_a_blend_is_called_what_it_is_for():
    start = Artifact(Path(), {"stage": "blend"})
    assert called("start 2", {"start 2": start}) == "start 2"


def test_with_the_sft_policy_as_reference_a_round_begins_where_the_last_has_led(folder, offline):
    run = go(folder, "rounds=2", "rounds.reference=sft")
    sft, before = (run.made[key].folder for key in ("policy", "trained.1"))
    pairs = [row for row in run.made["dataset.2"].table().to_pylist() if row["split"] == "train"]

    def moved(row: dict[str, Any], side: str) -> float:
        text = row[side][0]["content"]
        now, then = (log_prob(one, row["prompt"], text) for one in (before, sft))
        return now - then

    margins = [0.5 * (moved(row, "chosen") - moved(row, "rejected")) for row in pairs]
    by_hand = np.mean(np.logaddexp(0, [-margin for margin in margins]))
    assert first_loss(run.made["trained.2"]) == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand - LOG_2) > 0.01, "or this says nothing"
    measured = run.made["gradients.2"].table(["log_prob", "reference_log_prob"]).to_pylist()
    assert any(abs(row["log_prob"] - row["reference_log_prob"]) > 0.1 for row in measured)


def test_blends_are_of_the_weights_as_worked_out_by_hand(folder, offline):
    run = go(folder, "rounds=3", "rounds.reference=ema", "rounds.decay=0.25",
             "rounds.extrapolate=0.5", stage="augment")  # fmt: skip
    run_to_train = go(folder, "rounds=2", "rounds.reference=ema", "rounds.decay=0.25",
                      "rounds.extrapolate=0.5")  # fmt: skip
    models = {key: model_of(one) for key, one in {**run_to_train.made, **run.made}.items()
              if (one.folder / "model").is_dir()}  # fmt: skip
    for name, sft in models["policy"].items():
        one, two = models["trained.1"][name], models["trained.2"][name]
        start_2 = one + 0.5 * (one - sft)
        reference_2 = 0.25 * sft + 0.75 * start_2
        start_3 = two + 0.5 * (two - one)
        for key, worked_out in {
            "start.2": start_2, "reference.2": reference_2, "start.3": start_3,
        }.items():  # fmt: skip
            assert torch.allclose(models[key][name], worked_out, atol=1e-6), (key, name)
    assert run.made["responses.2"].manifest["inputs"]["policy"] == run.made["start.2"].digest
    inputs = run_to_train.made["trained.2"].manifest["inputs"]
    assert inputs["reference"] == run_to_train.made["reference.2"].digest


def test_the_lines_of_a_run_tell_a_start_from_a_reference(folder, offline, capsys):
    run = go(folder, "rounds=2", "rounds.reference=ema", "rounds.extrapolate=0.5", stage="augment")
    told = [row["name"] for row in run.voice.answer["stages"] if row["stage"] == "blend"]
    assert told == ["start 2", "reference 2"]
    printed = capsys.readouterr().err
    assert "start      " in printed
    assert "reference  " in printed
    assert "0.5 beyond the newer" in printed


def test_a_long_name_leaves_a_gap_before_its_state():
    row = Standing(stage="blend", name="a name of twenty chars", state="kept", why="", after=[])
    head, line = lines([row], used=False)
    assert line.startswith("a name of twenty chars kept")
    assert head.index("state") == line.index("kept")


@pytest.mark.parametrize(
    "words",
    [
        ["rounds=2"],
        ["rounds=2", "rounds.reference=sft"],
        ["rounds=3", "rounds.reference=ema", "rounds.decay=0.3", "rounds.extrapolate=0.1"],
    ],
)
def test_the_card_of_a_later_round_makes_the_same_rows_again(folder, tmp_path, three, words):
    first = go(folder, *words, stage="export")
    made = first.made["dataset"]
    card = (made.folder / "dataset/README.md").read_text(encoding="utf-8")
    recipe = tmp_path / "again.yaml"
    recipe.write_text(card.split("```json\n")[1].split("```")[0], encoding="utf-8")
    asked = settings.read(["stage=export", f"recipe={recipe}", f"runtime.folder={folder}"])
    again = Run(asked, Voice("json"))
    again.go()
    assert again.made["dataset"].folder == made.folder
    assert ("after 1 round of" in card) == (asked.config.rounds.count == 2)


def test_a_plan_tells_the_requests_of_each_round_apart(tmp_path):
    words = [f"runtime.folder={tmp_path}", *SMALL, "rounds=2", "stage=train"]
    judge = ["score.kind=rubric", "score.options.model=judge"]
    voice = Voice("json")
    plan(Command(settings.read([*words, *judge])), voice)
    assert [one.called for one in voice.answer["requests"]] == ["score 1", "score 2"]


def test_what_is_not_asked_for_is_not_evaluated(folder):
    words = [f"runtime.folder={folder}", *SMALL, "rounds=3", "rounds.evaluate_each=true"]
    config = settings.read(words).config
    names = [step.name for step in steps(("train",), config)]
    assert not [name for name in names if name.startswith("evaluate")]
    every = [step.name for step in steps(("evaluate",), config)]
    assert [name for name in every if name.startswith("evaluate")] == [
        "evaluate 1", "evaluate 2", "evaluate",
    ]  # fmt: skip


def test_a_tied_weight_is_moved_once():
    def tied(value: float) -> torch.nn.Module:
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
        )
        model[1].weight = model[0].weight
        torch.nn.init.constant_(model[0].weight, value)
        return model

    newer = tied(3.0)
    numbers, distance = blend(newer, tied(1.0), 1.5)
    assert (numbers, distance) == (4, 4.0)
    assert newer[0].weight.tolist() == newer[1].weight.tolist() == [[4.0, 4.0], [4.0, 4.0]]


@pytest.mark.parametrize("rank", [0, 4], ids=["weights", "adapters"])
@pytest.mark.parametrize("once", [False, True], ids=["beside", "beforehand"])
def test_a_reference_that_is_not_the_policy_is_compared_with(tmp_path, rank, once):
    start = make_started(tmp_path / "policy")
    moved = do_train(tmp_path / "other", start, steps=3, learning_rate=3e-2)
    reference = Artifact(moved.folder, {"inputs": {}})
    found = do_train(
        tmp_path / "found", start, inputs={"reference": reference, "gradients": Table(dataset())},
        steps=1, beta=0.5, lora_rank=rank, precompute_ref_log_probs=once,
    )  # fmt: skip

    def ratio(row: dict[str, Any], side: str) -> float:
        text = row[side][0]["content"]
        return log_prob(start, row["prompt"], text) - log_prob(moved.folder, row["prompt"], text)

    margins = [
        0.5 * (ratio(row, "chosen") - ratio(row, "rejected")) for row in dataset().to_pylist()
    ]
    by_hand = np.mean(np.logaddexp(0, [-margin for margin in margins]))
    assert found.facts["first_loss"] == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand - LOG_2) > 0.01


def test_a_loss_with_two_references_has_the_second_from_the_gradients_stage_alone(folder):
    asked = settings.read(
        [f"runtime.folder={folder}", *SMALL, "train.loss=inpo", "rounds=2", "rounds.reference=sft"]
    )
    found = {step.name: step.inputs for step in steps(("train",), asked.config)}
    assert found["gradients 1"]["reference"] == found["gradients 2"]["reference"] == "policy"
    assert found["train 2"]["policy"] == "trained.1"
    assert "reference" not in found["train 2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment.client=replay"], "samples each round from the policy"),
        (["rounds.reference=last"], "rounds.reference=last: choose behaviour, sft, ema."),
        (["rounds.decay=1"], "rounds.decay=1: use a share above 0 and below 1."),
        (["rounds.extrapolate=-1"], "rounds.extrapolate=-1: use 0 to 1."),
        (["rounds.count=0"], "rounds.count=0: use at least 1."),
        (["gradients.preconditioner=adam", "sft.keep_moments=true"], "moments of the SFT training"),
        (["rounds.reference=ema", "gradients.reference=adapter_off"], "two references"),
    ],
)
def test_what_rounds_cannot_be_done_with_is_said_before_any_work(words, said):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        settings.read([*SMALL, "rounds=2", *words])
