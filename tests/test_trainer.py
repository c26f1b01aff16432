"""The trainer: every loss learns, TRL's stay TRL's, and what goes in comes out."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from preferring import (
    Table,
    dataset,
    do_train,
    log_prob,
    losses,
    make_started,
    pairs_table,
    text_of,
    weights,
)

from bpo_data import stopping
from bpo_data.artifacts import Artifact
from bpo_data.errors import UserError
from bpo_data.losses import LOSSES
from bpo_data.objectives import NAMES, OF_TRL, WITH_SMOOTHING
from bpo_data.policy import load_policy

torch.set_num_threads(1)
RATES = {"win_rate_chosen": [1.0] * 8, "win_rate_rejected": [0.5, 0.0] * 4}
SHIFTS = {"shift_chosen": [0.0] * 8, "shift_rejected": [0.5, -0.5] * 4}
COLUMNS = {**RATES, **SHIFTS, "p_chosen": [0.9, 0.7] * 4}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_started(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def five_updates(started: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What DPO makes of the policy in five updates."""
    folder = tmp_path_factory.mktemp("five")
    return do_train(folder, started, steps=5, learning_rate=3e-3).folder


@pytest.mark.parametrize("loss", NAMES)
def test_each_loss_falls_in_ten_updates_and_the_chosen_rise_against_the_rejected(
    started: Path, tmp_path: Path, loss: str
) -> None:
    draft = do_train(
        *(tmp_path, started, dataset(**COLUMNS)),
        loss=loss,
        learning_rate=3e-3,
        label_smoothing=0.1 if loss == "exo_pair" else 0.0,
    )
    found, margins = losses(draft), draft.read()["margin"].to_pylist()
    assert len(found) == 10
    assert all(map(math.isfinite, found))
    assert found[-1] < found[0], found
    # The gradient of a loss with its sign turned lowers that loss just as well.
    assert (margins[-1] > margins[0]) == (loss != "discopop"), "its hollow is left of the start"


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid+sft", "ipo", "aot_unpaired"])
def test_a_loss_of_trl_is_bit_for_bit_its_own_trainers(
    started: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    import bpo_data.trainer

    ours = do_train(tmp_path / "ours", started, loss=loss, steps=3, batch=3)

    def plain(*, objective: Any, **rest: Any) -> Any:
        assert objective is None
        return trl.DPOTrainer(**rest)

    monkeypatch.setattr(bpo_data.trainer, "Trainer", plain)
    theirs = do_train(tmp_path / "theirs", started, loss=loss, steps=3, batch=3)
    assert weights(ours.folder) == weights(theirs.folder) != weights(started)
    assert ours.read().equals(theirs.read())


@pytest.mark.parametrize("loss", [name for name in OF_TRL if name in LOSSES])
def test_a_loss_that_both_have_trains_alike_on_either_path(
    started: Path, tmp_path: Path, loss: str
) -> None:
    settings = {"loss": loss, "steps": 3, "learning_rate": 1e-3}
    settings |= {"label_smoothing": 0.1} if loss in WITH_SMOOTHING else {}
    theirs = do_train(tmp_path / "theirs", started, **settings)
    table = dataset(ones=[1.0] * 8)
    ours = do_train(tmp_path / "ours", started, table, weights="ones", **settings)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    for name in ("rewards_chosen", "margin", "accuracy", "logps_chosen"):
        assert ours.read()[name].to_pylist() == pytest.approx(
            theirs.read()[name].to_pylist(), abs=1e-4
        )


def test_terms_of_ours_and_of_trl_add_up(started: Path, tmp_path: Path) -> None:
    once = {"steps": 1}
    sft = losses(do_train(tmp_path / "sft", started, loss="sft", **once))[0]
    both = do_train(tmp_path / "both", started, loss="lr+sft", loss_weights=[2.0, 0.5], **once)
    assert losses(both)[0] == pytest.approx(2 * math.log(2) + 0.5 * sft, rel=1e-5)


def test_accumulated_passes_learn_what_one_pass_learns(started: Path, tmp_path: Path) -> None:
    settings = {"loss": "lr+sft", "steps": 3, "learning_rate": 1e-3}
    one = do_train(tmp_path / "one", started, **settings, loss_weights=[1.0, 0.0])
    four = do_train(tmp_path / "four", started, **settings, loss_weights=[1.0, 0.0], accumulate=4)
    assert losses(four) == pytest.approx(losses(one), abs=1e-5)


def reference(started: Path) -> dict[str, list[float]]:
    """What a policy says of the chosen and the rejected responses, as columns of a dataset."""
    rows = [(number, place) for number in range(4) for place in (1, 2)]
    return {
        "ref_chosen_logps": [log_prob(started, n, text_of(n, 0)) for n, _ in rows],
        "ref_rejected_logps": [log_prob(started, n, text_of(n, place)) for n, place in rows],
    }


@pytest.mark.parametrize("loss", ["sigmoid", "kliep"])
def test_a_reference_from_columns_is_worth_one_that_runs(
    started: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"loss": loss, "steps": 4, "learning_rate": 1e-3}
    runs = do_train(tmp_path / "runs", started, **settings)
    once = do_train(tmp_path / "once", started, precompute_ref_log_probs=True, **settings)
    known = reference(started)
    refuse_to_copy(monkeypatch)
    columns = do_train(tmp_path / "columns", started, dataset(**known), **settings)
    assert losses(columns) == pytest.approx(losses(runs), abs=1e-5)
    assert losses(once) == pytest.approx(losses(runs), abs=1e-5)

    inputs = {"pairs": Table(pairs_table()), "gradients": said_by(started, started)}
    table = do_train(
        tmp_path / "table", started, inputs=inputs, reference_from="gradients", **settings
    )
    assert losses(table) == pytest.approx(losses(runs), abs=1e-5)
    with pytest.raises(UserError, match=r"train.max_length cuts"):
        do_train(
            *(tmp_path / "cut", started),
            inputs=inputs,
            reference_from="gradients",
            max_length=10,
        )


def said_by(policy: Path, other: Path) -> Table:
    """The gradients stage's log-probabilities of all responses, without the gradients."""
    places = [(number, place) for number in range(4) for place in range(3)]
    measured = {
        name: [log_prob(folder, number, text_of(number, place)) for number, place in places]
        for name, folder in (("log_prob", policy), ("reference_log_prob", other))
    }
    ids = [f"p{number}/{place:02d}" for number, place in places]
    return Table(pa.table({"response_id": ids, **measured}), reference="")


def test_a_rounds_own_reference_is_taken_from_the_gradients_table_too(
    started: Path, five_updates: Path, tmp_path: Path
) -> None:
    settings = {"loss": "lr", "steps": 2}
    own = {"reference": Artifact(five_updates, {})}
    runs = do_train(tmp_path / "runs", started, inputs=own, **settings)
    tables = own | {"pairs": Table(pairs_table()), "gradients": said_by(started, five_updates)}
    table = do_train(
        tmp_path / "table", started, inputs=tables, reference_from="gradients", **settings
    )
    assert losses(table) == pytest.approx(losses(runs), abs=1e-5)
    assert losses(runs)[0] != pytest.approx(math.log(2), abs=1e-2)


def refuse_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a second model or a pass of it is a fault."""
    import bpo_data.stages.train
    import bpo_data.trainer

    def refuse(*_: Any) -> None:
        raise AssertionError("a reference was loaded or run")

    monkeypatch.setattr(bpo_data.stages.train, "copy", SimpleNamespace(deepcopy=refuse))
    monkeypatch.setattr(bpo_data.trainer.Trainer, "compute_ref_log_probs", refuse)


def test_weights_of_zero_leave_the_policy_as_it_was(started: Path, tmp_path: Path) -> None:
    still = do_train(tmp_path / "still", started, dataset(none=[0.0] * 8), weights="none")
    zero = do_train(tmp_path / "zero", started, dataset(zero=[0.0] * 8), weights="zero", steps=2)
    assert weights(zero.folder) == weights(started) != weights(still.folder)


def test_weights_multiply_each_pairs_loss(started: Path, tmp_path: Path) -> None:
    once = {"steps": 1, "loss": "lr"}
    first = do_train(tmp_path / "a", started, dataset(own=[8.0, *[0.0] * 7]), weights="own", **once)
    assert losses(first)[0] == pytest.approx(math.log(2), abs=1e-6)
    margins = do_train(tmp_path / "b", started, weights="margin", **once)
    assert losses(margins)[0] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(UserError, match=r"train.weights=margn .* Did you mean margin\?"):
        do_train(tmp_path / "c", started, weights="margn", **once)
    with pytest.raises(UserError, match=r"a weight is a finite number of 0 or more"):
        do_train(tmp_path / "d", started, dataset(own=[-1.0] * 8), weights="own", **once)


def test_a_beta_of_its_own_changes_what_the_rejected_side_is_pushed(
    started: Path, tmp_path: Path
) -> None:
    settings = {"loss": "sigmoid", "learning_rate": 1e-3}
    same = do_train(tmp_path / "same", started, beta_rejected=0.1, **settings)
    plain = do_train(tmp_path / "plain", started, **settings)
    more = do_train(tmp_path / "more", started, beta_rejected=1.0, **settings)
    assert losses(same) == pytest.approx(losses(plain), rel=1e-5)
    rejected = [draft.read()["rewards_rejected"][-1].as_py() for draft in (more, plain)]
    assert rejected[0] < rejected[1]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """As if a signal came during that update."""
    heard = iter([False] * (updates - 1) + [True] * 100)
    monkeypatch.setattr(stopping, "asked", lambda: next(heard))


@pytest.mark.parametrize("settings", [{"loss": "sba"}, {"loss": "tpo"}, {"lora_rank": 2}])
def test_a_training_gone_on_with_ends_like_an_unbroken_one(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = settings | {"steps": 6, "batch": 2}
    whole = do_train(tmp_path / "whole", started, **settings)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            do_train(tmp_path / "broken", started, **settings)
    again = do_train(tmp_path / "broken", started, **settings)
    assert weights(again.folder) == weights(whole.folder)
    assert again.read()["step"].to_pylist() == [1, 2, 3, 4, 5, 6]


def test_a_kill_loses_the_updates_since_the_last_checkpoint_alone(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bpo_data.trainer

    settings = {"loss": "lr", "steps": 6, "batch": 2}
    whole = do_train(tmp_path / "whole", started, **settings)
    seen: list[int] = []
    compute = bpo_data.trainer.Trainer.compute_loss

    def killed(self: Any, *rest: Any, **named: Any) -> Any:
        seen.append(self.state.global_step)
        if self.state.global_step == 5 and len(seen) == 6:
            raise MemoryError("as good as a kill")
        return compute(self, *rest, **named)

    monkeypatch.setattr(bpo_data.trainer.Trainer, "compute_loss", killed)
    with pytest.raises(MemoryError):
        do_train(tmp_path / "killed", started, save_steps=2, **settings)
    left = list((tmp_path / "killed/.resume/trainer").glob("checkpoint-*"))
    assert [path.name for path in left] == ["checkpoint-4"]
    again = do_train(tmp_path / "killed", started, save_steps=2, **settings)
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5]
    assert weights(again.folder) == weights(whole.folder)


def test_a_checkpoint_that_changed_on_disk_is_named_and_not_gone_on_from(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"loss": "lr", "steps": 3, "batch": 2}
    whole = do_train(tmp_path / "whole", started, **settings)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            do_train(tmp_path / "broken", started, **settings)
    (state,) = (tmp_path / "broken").rglob("optimizer.pt")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    again = do_train(tmp_path / "broken", started, **settings)
    assert f"{state.parent} is not what was written" in caplog.text
    assert weights(again.folder) == weights(whole.folder)
    assert again.read()["step"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("loss", ["sigmoid", "balanced"])
def test_adapters_learn_and_end_in_the_weights(
    started: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bpo_data.stages.train

    def refuse(*_: Any) -> None:
        raise AssertionError("with adapters no second model is needed")

    monkeypatch.setattr(bpo_data.stages.train, "copy", SimpleNamespace(deepcopy=refuse))
    draft = do_train(tmp_path, started, loss=loss, lora_rank=2, lora_targets=["q_proj", "v_proj"])
    assert losses(draft)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(draft)[-1] < losses(draft)[0]
    before, after = (
        load_policy(str(folder / "model"), None, "cpu", "float32").model.state_dict()
        for folder in (started, draft.folder)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}
    rises = [log_prob(draft.folder, 0, text_of(0, n)) - log_prob(started, 0, text_of(0, n))
             for n in (0, 1)]  # fmt: skip
    assert rises[0] > rises[1]


def test_the_log_tells_the_chosen_against_the_reference_and_rings_when_they_fall(
    started: Path, tmp_path: Path
) -> None:
    up = do_train(tmp_path / "up", started, loss="sft")
    assert up.facts["chosen_over_reference"] > 0
    assert "notes" not in up.facts
    table = dataset()
    swapped = table.set_column(1, "chosen", table["rejected"]).set_column(
        2, "rejected", table["chosen"]
    )
    down = do_train(tmp_path / "down", started, swapped, loss="apo_down", steps=40, beta=0.5)
    ratio = down.read()["chosen_over_reference"].to_pylist()
    assert ratio[0] == pytest.approx(0, abs=1e-5)
    expected = [
        log_prob(down.folder, n, text_of(n, place)) - log_prob(started, n, text_of(n, place))
        for n in range(4)
        for place in (1, 2)
    ]
    assert sum(expected) / 8 == pytest.approx(ratio[-1], abs=1.0)
    assert down.facts["chosen_over_reference"] < -1
    assert any(note.startswith("ALARM: the chosen responses ended") for note in down.facts["notes"])


def test_a_loss_without_end_is_a_user_error(started: Path, tmp_path: Path) -> None:
    far = dataset(ref_chosen_logps=[900.0] * 8, ref_rejected_logps=[-900.0] * 8)
    with pytest.raises(UserError, match=r"train: the loss is inf at update 1. Lower"):
        do_train(tmp_path / "ours", started, far, loss="lsif")
    farther = dataset(ref_chosen_logps=[1e30] * 8, ref_rejected_logps=[-1e30] * 8)
    with pytest.raises(UserError, match=r"train: the loss is inf at update 1. Lower"):
        do_train(tmp_path / "theirs", started, farther, loss="sppo_hard")


def test_a_reference_in_the_dataset_is_whole_and_of_whole_responses(
    started: Path, tmp_path: Path
) -> None:
    known = reference(started)
    holes = dataset(**known | {"ref_chosen_logps": [math.nan] * 8})
    with pytest.raises(UserError, match=r"column ref_chosen_logps of the dataset has empty"):
        do_train(tmp_path / "holes", started, holes)
    # ld_alpha counts the tokens past the shorter response less, on both sides of a log-ratio.
    apart = do_train(
        tmp_path / "apart", started, dataset(**known), steps=1, loss_options={"ld_alpha": 0.5}
    )
    assert losses(apart)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_an_automatic_dtype_is_what_the_machine_has(started: Path, tmp_path: Path) -> None:
    assert do_train(tmp_path, started, steps=1, dtype="auto").facts["dtype"] == "float32"


def test_four_bits_without_a_gpu_are_a_user_error(started: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.quantize=4bit needs a GPU"):
        do_train(tmp_path, started, quantize="4bit", lora_rank=2)


@pytest.mark.parametrize(
    "options",
    [
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
    ],
)
def test_variants_of_trl_are_reached_by_options_of_the_loss(
    started: Path, tmp_path: Path, five_updates: Path, options: dict[str, Any]
) -> None:
    told = do_train(tmp_path, started, loss_options=options, steps=5, learning_rate=3e-3)
    assert losses(told)[-1] < losses(told)[0]
    assert weights(told.folder) != weights(five_updates)
