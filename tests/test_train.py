"""The two training stages: what they learn from, what they write, and that it repeats."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bpo_data.artifacts import Artifact, Draft
from bpo_data.errors import UserError
from bpo_data.objectives import OF_TRL, WITH_SMOOTHING
from bpo_data.policy import encode, load_policy, policy_location
from bpo_data.runtime import Runtime
from bpo_data.scratch import Scratch
from bpo_data.stages import sft, train
from bpo_data.stages.sft import SftConfig, chosen_lessons
from bpo_data.stages.train import TrainConfig
from bpo_data.tables import MSG, Message

GIVEN = pa.list_(
    pa.struct([("text", pa.string()), ("author", pa.string()), ("score", pa.float32())])
)
SIZES = Scratch(vocabulary=300, width=16, layers=1, heads=2, hidden=16, positions=48)
Asked = tuple[str | list[Message], list[tuple[str, float | None]], str | None]


def asked(prompt: str | list[Message]) -> list[Message]:
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def prompts_table(rows: list[Asked]) -> pa.Table:
    """(question or conversation, [(response, score)], split) rows as the prompts table."""
    given = [[{"text": t, "author": "a", "score": s} for t, s in row[1]] for row in rows]
    return pa.table(
        {
            "prompt": pa.array([asked(row[0]) for row in rows], MSG),
            "given": pa.array(given, GIVEN),
            "split": pa.array([row[2] for row in rows], pa.string()),
        }
    )


SEEDS: list[Asked] = [(f"add {n} and 2", [(f"= {n + 2}", None)], "seed") for n in range(24)]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def dataset_table(rows: int = 24, longest: int = 1) -> pa.Table:
    """Pairs that prefer ``= `` to ``maybe``, and one in the test split."""
    asked = [[{"role": "user", "content": f"add {n} and 2"}] for n in range(rows)]
    asked[0][0]["content"] *= longest
    return pa.table(
        {
            "prompt": pa.array(asked, MSG),
            "chosen": pa.array([said(f"= {n + 2}") for n in range(rows)], MSG),
            "rejected": pa.array([said(f"maybe {n}") for n in range(rows)], MSG),
            "split": ["train"] * (rows - 1) + ["test"],
        }
    )


def do_sft(folder: Path, rows: list[Asked] = SEEDS, **settings: Any) -> Draft:
    config = SftConfig(**({"scratch": SIZES, "steps": 6, "batch": 8} | settings))
    assert not list(config.problems())
    folder.mkdir(parents=True)
    draft = Draft(folder, "policy", sft.schema(config), {})
    sft.run(draft, config, Runtime(device="cpu"), prompts=prompts_table(rows))
    return draft


def do_train(folder: Path, policy: Path, dataset: pa.Table, **settings: Any) -> Draft:
    config = TrainConfig(**({"steps": 4, "batch": 4, "learning_rate": 3e-3} | settings))
    assert not list(config.problems())
    folder.mkdir(parents=True)
    draft = Draft(folder, "trained", train.schema(config), {"policy": Artifact(policy, {})})
    train.run(draft, config, Runtime(device="cpu"), dataset=dataset)
    return draft


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "policy"
    do_sft(folder)
    return folder


def test_sft_learns_repeats_byte_for_byte_and_differs_by_seed(
    started: Path, tmp_path: Path
) -> None:
    again = do_sft(tmp_path / "again")
    other = do_sft(tmp_path / "other", seed=1)
    assert weights(again.folder) == weights(started) != weights(other.folder)
    log = again.read()
    assert log["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert log["loss"][-1].as_py() < log["loss"][0].as_py()
    assert again.facts["responses"] == 24
    assert {p.suffix for p in (again.folder / "model").iterdir()} == {
        ".safetensors", ".json", ".jinja",
    }  # fmt: skip


def test_the_first_sft_loss_is_that_of_guessing_the_response_only(tmp_path: Path) -> None:
    sizes = Scratch(**(vars(SIZES) | {"initializer_range": 1e-4}))
    draft = do_sft(tmp_path / "sft", scratch=sizes, steps=1)
    # With weights near zero every token is as likely as any other.
    assert draft.read()["loss"][0].as_py() == pytest.approx(
        math.log(draft.facts["vocabulary"]), abs=0.01
    )


def test_sft_learns_from_the_seed_split_where_there_is_one() -> None:
    rows: list[Asked] = [
        ("a", [("one", 1.0), ("two", 3.0), ("three", 3.0)], None),
        ("b", [("four", None), (" ", 9.0)], "pool"),
        ("c", [("five", None)], "test"),
    ]
    lessons = chosen_lessons(prompts_table(rows), "all")
    assert [text for _, text in lessons] == ["one", "two", "three", "four"]
    assert [text for _, text in chosen_lessons(prompts_table(rows), "best")] == ["two", "four"]
    with_seed = [*rows, ("d", [("six", None)], "seed")]
    assert [text for _, text in chosen_lessons(prompts_table(with_seed), "all")] == ["six"]


def test_prompts_without_responses_name_the_way_out() -> None:
    with pytest.raises(UserError, match=r"load.columns, or use sft.kind=given"):
        chosen_lessons(prompts_table([("a", [], None), ("b", [("x", None)], "test")]), "all")


def test_lessons_too_long_are_counted(tmp_path: Path) -> None:
    rows = [*SEEDS, ("9" * 60, [("= 1", None)], "seed"), ("9" * 40, [("1" * 20, None)], "seed")]
    draft = do_sft(tmp_path / "sft", rows, steps=1)
    assert (draft.facts["responses"], draft.facts["cut"], draft.facts["dropped"]) == (25, 1, 1)


def test_a_given_policy_is_a_pointer(started: Path, tmp_path: Path) -> None:
    draft = do_sft(tmp_path / "sft", kind="given", model=str(started / "model"))
    assert draft.read().num_rows == 0
    assert policy_location(draft.folder) == (str(started / "model"), None)
    assert json.loads((draft.folder / "model.json").read_text())["revision"] == ""
    with pytest.raises(UserError, match=r"sft.model=./nowhere is no folder"):
        do_sft(tmp_path / "none", kind="given", model="./nowhere")


def test_continue_starts_from_the_given_weights(started: Path, tmp_path: Path) -> None:
    go_on = {"kind": "continue", "model": str(started / "model"), "steps": 1, "warmup_steps": 0}
    still = do_sft(tmp_path / "still", **go_on, learning_rate=1e-12, weight_decay=0.0)
    moved = do_sft(tmp_path / "moved", **go_on)
    models = [load_policy(*policy_location(f), "cpu", "float32").model
              for f in (started, still.folder, moved.folder)]  # fmt: skip
    before, same, after = (model.lm_head.weight for model in models)
    assert (before - same).abs().max() < 1e-6 < (before - after).abs().max()


def test_dpo_learns_repeats_byte_for_byte_and_leaves_the_test_split_alone(
    started: Path, tmp_path: Path
) -> None:
    one = do_train(tmp_path / "one", started, dataset_table())
    two = do_train(tmp_path / "two", started, dataset_table())
    kept_once = do_train(
        tmp_path / "three", started, dataset_table(), precompute_ref_log_probs=True
    )
    assert weights(one.folder) == weights(two.folder) != weights(started)
    assert one.facts["pairs"] == 23
    log = one.read()
    assert log["loss"][0].as_py() == pytest.approx(math.log(2), abs=1e-6)
    assert log["margin"][0].as_py() == pytest.approx(0, abs=1e-6)
    assert log["margin"][-1].as_py() > 0
    assert kept_once.read()["loss"].to_pylist() == pytest.approx(log["loss"].to_pylist(), abs=1e-5)
    assert {p.suffix for p in (one.folder / "model").iterdir()} == {
        ".safetensors", ".json", ".jinja",
    }  # fmt: skip


def log_prob(folder: Path, prompt: list[Any], response: str) -> float:
    """Sum over completion tokens, end token included, straight from the logits."""
    import torch

    policy = load_policy(*policy_location(folder), "cpu", "float32")
    before, after = encode(policy.tokenizer, prompt, response)
    with torch.no_grad():
        logits = policy.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)].sum().item()


def test_logged_log_probabilities_are_those_of_the_policy(started: Path, tmp_path: Path) -> None:
    dataset = dataset_table()
    pair = dataset.slice(5, 1)
    draft = do_train(tmp_path / "one", started, pair, steps=1, batch=1)
    row = pair.to_pylist()[0]
    expected = log_prob(started, row["prompt"], row["chosen"][0]["content"])
    assert draft.read()["logps_chosen"][0].as_py() == pytest.approx(expected, abs=1e-4)


def test_epochs_count_the_pairs(started: Path, tmp_path: Path) -> None:
    draft = do_train(tmp_path / "one", started, dataset_table(), steps=0, epochs=2.0, batch=8)
    assert draft.facts["updates"] == 2 * math.ceil(23 / 8)


def test_pairs_too_long_are_counted_and_none_left_is_a_user_error(
    started: Path, tmp_path: Path
) -> None:
    draft = do_train(tmp_path / "one", started, dataset_table(longest=30), steps=1)
    assert (draft.facts["pairs"], draft.facts["dropped"]) == (22, 1)
    cut = do_train(tmp_path / "two", started, dataset_table(), steps=1, max_length=15)
    assert cut.facts["cut"] > 0
    with pytest.raises(UserError, match=r"train.max_length=4 tokens"):
        do_train(tmp_path / "three", started, dataset_table(), max_length=4)


def test_no_library_speaks_of_names_that_will_change(started: Path, tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        do_sft(tmp_path / "sft", steps=1, gradient_checkpointing=True)
        do_train(tmp_path / "one", started, dataset_table(6), steps=1, gradient_checkpointing=True)


@pytest.mark.parametrize("loss", OF_TRL)
def test_every_listed_loss_trains(started: Path, tmp_path: Path, loss: str) -> None:
    soft = {"label_smoothing": 0.1} if loss in WITH_SMOOTHING else {}
    draft = do_train(tmp_path / "one", started, dataset_table(6), loss=loss, steps=1, **soft)
    assert math.isfinite(draft.read()["loss"][0].as_py())


def test_joined_losses_add_up_with_their_weights(started: Path, tmp_path: Path) -> None:
    def first(name: str, **settings: Any) -> float:
        draft = do_train(tmp_path / name, started, dataset_table(5), batch=4, steps=1, **settings)
        return draft.read()["loss"][0].as_py()

    both = first("both", loss="sigmoid+sft", loss_weights=[2.0, 0.5])
    assert both == pytest.approx(2 * math.log(2) + 0.5 * first("sft", loss="sft"), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (TrainConfig(loss="sigmoit"), "sigmoit is no loss. Did you mean sigmoid?"),
        (TrainConfig(loss="sigmoid+sft", loss_weights=[1.0]), "has 1 numbers for 2 losses"),
        (TrainConfig(loss="exo_pair"), "label_smoothing"),
        (TrainConfig(beta=0.0), "train.beta=0.0"),
        (TrainConfig(batch=6, accumulate=4), "train.batch=6 cannot be split"),
        (TrainConfig(dtype="float16"), "train.dtype=float16"),
        (TrainConfig(epochs=0.0), "train.epochs=0.0"),
        (SftConfig(kind="given"), "needs sft.model"),
        (SftConfig(kind="scrach"), "sft.kind=scrach"),
        (SftConfig(model="x"), "has no use with sft.kind=scratch"),
        (SftConfig(take="worst"), "sft.take=worst"),
        (SftConfig(learning_rate=0.0), "sft.learning_rate=0.0"),
    ],
)
def test_settings_that_cannot_work_are_named(config: Any, problem: str) -> None:
    assert any(problem in line for line in config.problems())


def test_bfloat16_without_a_gpu_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sft.dtype=bfloat16 needs a GPU"):
        do_sft(tmp_path / "sft", dtype="bfloat16")


def test_a_template_that_cannot_be_cut_names_the_model(started: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(started / "model", tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{{ messages | length }}{% if add_generation_prompt %}go{% endif %}", encoding="utf-8"
    )
    with pytest.raises(UserError, match="template that cannot be trained on"):
        do_sft(tmp_path / "sft", kind="continue", model=str(model))
