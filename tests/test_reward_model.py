"""The reward model: one logit a response, as the model alone gives it, however it is batched."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import transformers
from judged import item, judged, scores
from tiny_models import save_reward_model

from bpo_data.components import judges, kinds, reward_model
from bpo_data.components.judges import RewardModel
from bpo_data.errors import UserError
from bpo_data.policy import plain_messages
from bpo_data.stages.score import ScoreConfig, outside
from bpo_data.work import Work, settings_of

TEXTS = ["yes", "no, never at all", "yes yes yes yes yes yes", "", "perhaps so", "yes", "<|end|>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


def alone(folder: Path, text: str) -> float:
    """The model's logit of one conversation, without any batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    turns = [
        {"role": "user", "content": "say something"},
        {"role": "assistant", "content": text},
    ]
    ids = tokenizer.apply_chat_template(plain_messages(tokenizer, turns), return_dict=False)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_points_equal_a_forward_pass_of_each_response_alone(model, batch):
    found = judged(RewardModel(str(model), batch=batch), [item(text) for text in TEXTS])
    expected = [alone(model, text) for text in TEXTS]
    assert scores(found) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == len(set(TEXTS))
    assert [one.state for one in found.verdicts] == ["ok"] * len(TEXTS)
    assert [one.item for one in found.opinions] == list(range(len(TEXTS)))


def test_a_model_without_a_padding_token_is_batched_all_the_same(tmp_path):
    folder = save_reward_model(tmp_path / "model", padding=False)
    found = judged(RewardModel(str(folder), batch=4), [item(text) for text in TEXTS])
    assert scores(found) == pytest.approx([alone(folder, text) for text in TEXTS], abs=1e-5)


def test_the_same_text_has_the_same_points_to_the_last_bit(model):
    items = [item("yes"), *(item("no " * number) for number in range(1, 9)), item("yes")]
    found = scores(judged(RewardModel(str(model), batch=2), items))
    assert found[0] == found[-1]


def test_the_order_of_rows_changes_no_points(model):
    items = [item(text) for text in TEXTS]
    judge = RewardModel(str(model), batch=3)
    assert scores(judged(judge, items[::-1])) == scores(judged(judge, items))[::-1]


def test_where_the_parts_are_cut_changes_no_points(model, monkeypatch):
    items = [item("yes no " * number) for number in range(9)]
    whole = scores(judged(RewardModel(str(model), batch=2), items))
    monkeypatch.setattr(reward_model, "BATCHES", 1)
    assert scores(judged(RewardModel(str(model), batch=2), items)) == whole


def test_what_is_too_long_has_no_points_and_is_not_cut(model):
    judge = RewardModel(str(model), max_length=20)
    short, long = judged(judge, [item("yes"), item("yes no " * 20)]).verdicts
    assert short.state == "ok"
    assert (long.score, long.state) == (None, "too_long")
    assert "tokens are more than 20" in long.reply
    held = RewardModel(str(model), max_length=4096)  # the model itself holds 128
    assert judged(held, [item("yes no " * 200)]).verdicts[0].state == "too_long"


def test_points_that_are_no_number_are_null(tmp_path):
    folder = save_reward_model(tmp_path / "model")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    classifier.score.weight.data.fill_(math.inf)
    classifier.save_pretrained(folder)
    (verdict,) = judged(RewardModel(str(folder)), [item("yes")]).verdicts
    assert (verdict.score, verdict.state) == (None, "unreadable")


def test_a_conversation_that_the_template_refuses_has_no_points(tmp_path):
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    folder = save_reward_model(tmp_path / "model", chat_template=template)
    system = dataclasses.replace(
        item("yes"), prompt=[{"role": "system", "content": "Be brief."}, *item("").prompt]
    )
    fine, refused = judged(RewardModel(str(folder)), [item("yes"), system]).verdicts
    assert fine.state == "ok"
    assert (refused.score, refused.state) == (None, "unreadable")
    assert "no system turn" in refused.reply


def only_blocks(folder: Path) -> None:
    """A language model's weights where a classifier's are wanted: no trained head."""
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def pickled(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save({"score.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    weights.unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a model")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (only_blocks, "is no reward model: its weights have no score.weight"),
        (without_template, "has no chat template"),
        (pickled, "cannot be loaded"),
        (broken, "cannot be loaded"),
    ],
)
def test_a_folder_without_a_reward_model_is_one_line_with_the_way_out(tmp_path, spoil, words):
    folder = save_reward_model(tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError) as caught:
        judged(RewardModel(str(folder)), [item("yes")])
    assert str(caught.value).startswith(f"score.options.model={folder}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_of_several_classes_is_no_reward_model(tmp_path):
    folder = save_reward_model(tmp_path / "model", labels=3)
    with pytest.raises(UserError, match="it tells 3 classes apart"):
        judged(RewardModel(str(folder)), [item("yes")])


def test_a_folder_that_is_not_there_is_missed_before_any_work():
    with pytest.raises(UserError, match=r"score\.options\.model=\./nowhere holds no model"):
        RewardModel("./nowhere").ready()
    RewardModel("some-lab/reward-model").ready()


def test_impossible_options_are_found_while_settings_are_read():
    for options, words in (({"dtype": "float8"}, "dtype=float8"), ({"batch": 0}, "at least 1")):
        (problem,) = kinds.problems(
            judges.KINDS, "reward_model", {"model": "m", **options}, "score.kind"
        )
        assert words in problem


def test_the_models_files_are_part_of_the_key_a_panels_too(model):
    alone = outside(ScoreConfig("reward_model", {"model": str(model)}))
    assert "model.safetensors" in alone
    members = [{"kind": "given"}, {"kind": "reward_model", "options": {"model": str(model)}}]
    both = outside(ScoreConfig("panel", {"judges": members}))
    assert both == {f"judges[1]/{name}": digest for name, digest in alone.items()}
    served = ScoreConfig("rubric", {"model": str(model)})
    assert outside(served) == {}, "a server's name of a model is no folder of ours"


def test_a_changed_model_is_another_piece_of_work(tmp_path):
    config = ScoreConfig("reward_model", {"model": str(save_reward_model(tmp_path / "model"))})

    def work() -> Work:
        return Work("score", 1, settings_of(config), {}, outside(config))

    before = work()
    assert work().name == before.name
    save_reward_model(tmp_path / "model", padding=False)
    assert work().name != before.name
