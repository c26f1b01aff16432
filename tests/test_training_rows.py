"""What a training is fed: rows, lists, and columns worked out from other tables."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from preferring import (
    Table,
    asked,
    dataset,
    do_train,
    log_prob,
    losses,
    make_started,
    pairs_table,
    said,
    text_of,
)

from bpo_data import training_rows
from bpo_data.errors import UserError
from bpo_data.losses import LIST, LOSSES
from bpo_data.policy import load_policy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_started(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("loss", [n for n, loss in LOSSES.items() if loss.measures == LIST])
def test_a_list_holds_every_response_of_its_prompts_pairs(
    started: Path, tmp_path: Path, loss: str
) -> None:
    draft = do_train(tmp_path, started, loss=loss, steps=2, batch=4, learning_rate=1e-12)
    policy = load_policy(str(started / "model"), None, "cpu", "float32")
    rows = training_rows.of_lists(policy, dataset().to_pylist())
    assert [len(row["list_ids"]) for row in rows] == [3] * 4
    assert rows[0]["list_scores"] == [9.0, 4.0, 3.0]
    assert rows[0]["chosen"] == said(text_of(0, 0))
    assert rows[0]["rejected"] == said(text_of(0, 2))
    means = [
        [log_prob(started, n, text_of(n, place)) / len(rows[n]["list_ids"][place])
         for place in range(3)]
        for n in range(4)
    ]  # fmt: skip
    beside = {
        "scores": torch.tensor([[9.0, 4.0, 3.0]] * 4),
        "present": torch.ones(4, 3) > 0,
        "means": torch.tensor(means),
    }
    columns = {name: beside[name] for name in LOSSES[loss].columns}
    expected = LOSSES[loss](torch.zeros(4, 3), 0.1, **columns).mean()
    assert losses(draft)[0] == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_of_lists_knows_where_each_response_went(started: Path) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from bpo_data.batches import Collator

    rows = [
        {
            "prompt_ids": [1, number],
            "chosen_ids": [10],
            "rejected_ids": [14, 2],
            "list_ids": [[10], [11, 2], [12], [13, 2, 2], [14, 2]][: 5 - number]
            + [[14, 2]] * number,
            "list_scores": [5.0, 4.0, 3.0, 2.0, 1.0][: 5 - number] + [0.5] * number,
        }
        for number in range(2)
    ]
    batch = Collator(DataCollatorForPreference(pad_token_id=0), [])(rows)
    for number, row in enumerate(rows):
        for place, ids in enumerate(row["list_ids"]):
            where = batch["listed"][number, place]
            read = batch["input_ids"][where][batch["attention_mask"][where].bool()].tolist()
            assert read == [1, number, *ids]
            scored = batch["completion_mask"][where].bool()
            assert batch["input_ids"][where][scored].tolist() == ids
    assert batch["present"].sum(dim=1).tolist() == [len(row["list_ids"]) for row in rows]


def test_win_rates_are_shares_of_the_prompts_other_responses() -> None:
    scores = pa.table(
        {
            "response_id": ["a/00", "a/01", "a/02", "a/03", "b/00", "b/01"],
            "score": pa.array([3.0, 1.0, 3.0, None, 5.0, 6.0]),
        }
    )
    assert training_rows.win_rates(scores) == {
        "a/00": 0.75, "a/01": 0.0, "a/02": 0.75, "b/00": 0.0, "b/01": 1.0,
    }  # fmt: skip


def test_columns_that_no_table_has_are_worked_out_or_asked_for(
    started: Path, tmp_path: Path
) -> None:
    ids = [f"p{number}/{place:02d}" for number in range(4) for place in range(3)]
    scores = pa.table({"response_id": ids, "score": [9.0, 4.0, 3.0] * 4})
    gradients = pa.table(
        {"response_id": ids, "log_prob": [-3.0] * 12, "reference_log_prob": [-1.0, -4.0, -6.0] * 4}
    )
    inputs = {"pairs": Table(pairs_table()), "scores": Table(scores),
              "gradients": Table(gradients, reference="other")}  # fmt: skip
    names = ["win_rate_chosen", "win_rate_rejected", "shift_chosen", "shift_rejected"]
    found = training_rows.extra_columns(names, dataset(), inputs)
    assert {name: values.tolist() for name, values in found.items()} == {
        "win_rate_chosen": [1.0] * 8,
        "win_rate_rejected": [0.5, 0.0] * 4,
        "shift_chosen": [2.0] * 8,
        "shift_rejected": [-1.0, -3.0] * 4,
    }
    inputs["gradients"] = Table(gradients, reference="")
    with pytest.raises(UserError, match=r"shift_chosen.*gradients.reference"):
        do_train(tmp_path / "inpo", started, inputs=inputs, loss="inpo")
    with pytest.raises(UserError, match=r"win_rate_chosen.*score.kind"):
        do_train(tmp_path / "sppo", started, loss="sppo")
    with pytest.raises(UserError, match=r"no column p_chosen of judges.*train.label_smoothing"):
        do_train(tmp_path / "smoothed", started, loss="smoothed")


def test_label_smoothing_stands_in_where_judges_left_p_chosen_open() -> None:
    shares = [0.9, None, 0.25, None, 1.0, 0.0, 0.5, 0.75]
    table = dataset().append_column("p_chosen", pa.array(shares, pa.float32()))
    (found,) = training_rows.opinions_of(table, {}, 0.25).values()
    assert found == pytest.approx([0.9, 0.75, 0.25, 0.75, 1.0, 0.0, 0.5, 0.75])
    with pytest.raises(UserError, match=r"2 of 8 pairs have no p_chosen.*label_smoothing above 0"):
        training_rows.opinions_of(table, {}, 0.0)
    silent = dataset().append_column("p_chosen", pa.nulls(8, pa.float32()))
    assert training_rows.opinions_of(silent, {}, 0.25) == {}, "the loss has its own 1 - 0.25"
    with pytest.raises(UserError, match="no column p_chosen of judges"):
        training_rows.opinions_of(silent, {}, 0.0)
    endless = dataset().append_column("p_chosen", pa.array([math.inf] * 8, pa.float32()))
    with pytest.raises(UserError, match="endless values"):
        training_rows.opinions_of(endless, {}, 0.25)


def test_prompts_are_asked_as_the_dataset_has_them(started: Path) -> None:
    policy = load_policy(str(started / "model"), None, "cpu", "float32")
    (row,) = training_rows.of_pairs(policy, dataset().to_pylist()[:1], {})
    assert row == {"prompt": asked(0), "chosen": said("= 2"), "rejected": said("maybe 2 or so")}
