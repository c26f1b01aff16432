"""The policy: what is made, saved and loaded, and that text typed by users stays text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.artifacts import Draft
from bpo_data.errors import UserError
from bpo_data.policy import (
    BREAK,
    Policy,
    check_written,
    encode,
    load_policy,
    plain,
    plain_messages,
    policy_location,
    prompt_tokens,
    save_policy,
)
from bpo_data.scratch import Scratch, make_policy
from bpo_data.shelf import Shelf
from bpo_data.tables import Message, columns
from bpo_data.work import Work

SPECIAL = Path(__file__).parents[2] / "shared/data/bad_inputs/28_special_tokens.jsonl"
TALKS = [
    [Message(role="user", content="add 12 and 7"), Message(role="assistant", content="= 19")],
    [Message(role="user", content="colour of dali"), Message(role="assistant", content="= red")],
]
SMALL = Scratch(vocabulary=300, width=16, layers=1, heads=2, hidden=16, positions=64)


@pytest.fixture(scope="module")
def policy() -> Policy:
    import torch

    torch.set_num_threads(1)
    return make_policy(TALKS, SMALL, seed=0)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_saved_policy_holds_no_pickle_and_equal_policies_give_equal_bytes(
    policy: Policy, tmp_path: Path
) -> None:
    save_policy(policy, tmp_path / "one")
    save_policy(make_policy(TALKS, SMALL, seed=0), tmp_path / "two")
    save_policy(load_policy(str(tmp_path / "one"), None, "cpu", "float32"), tmp_path / "three")
    one = digests(tmp_path / "one")
    assert {Path(name).suffix for name in one} == {".safetensors", ".json", ".jinja"}
    assert digests(tmp_path / "two") == one
    assert digests(tmp_path / "three") == one


def test_another_seed_gives_other_weights_and_leaves_torchs_own_draws_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [make_policy(TALKS, SMALL, seed=seed).model for seed in (0, 1)]
    assert torch.rand(1) == expected
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)


def test_the_first_weights_spread_as_asked(policy: Policy) -> None:
    assert policy.model.lm_head.weight.std().item() == pytest.approx(0.08, rel=0.05)


def test_every_digit_is_a_token_of_its_own_and_all_text_comes_back(policy: Policy) -> None:
    ids = policy.tokenizer("1234 x", add_special_tokens=False)["input_ids"]
    assert policy.tokenizer.convert_ids_to_tokens(ids)[:4] == ["1", "2", "3", "4"]
    text = "ÄÖ 漢字 🙂\u2028\t  two  spaces 007"
    assert policy.tokenizer.decode(policy.tokenizer(text)["input_ids"]) == text


def test_the_template_writes_each_turn_with_its_role_and_end(policy: Policy) -> None:
    prompt = [Message(role="system", content="s"), Message(role="user", content="u")]
    before, after = encode(policy.tokenizer, prompt, "a")
    assert policy.tokenizer.decode(before) == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    assert policy.tokenizer.decode(after) == "a<|end|>"
    assert after[-1] == policy.tokenizer.eos_token_id


def trl_rows(trainer: type, policy: Policy, config: Any, rows: list[dict[str, Any]]) -> Any:
    """The rows as a TRL trainer tokenises them."""
    import copy

    import datasets

    model = copy.deepcopy(policy.model)
    options = {"ref_model": copy.deepcopy(model)} if "DPO" in trainer.__name__ else {}
    dataset = datasets.Dataset.from_list(rows)
    return trainer(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=policy.tokenizer,
        **options,
    ).train_dataset


def test_encode_cuts_prompt_and_completion_as_trl_does(policy: Policy, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    prompt = [
        Message(role="system", content=" be brief\n"),
        Message(role="user", content="7 x 6 <|end|> ?"),
        Message(role="assistant", content="42"),
        Message(role="user", content="sure? "),
    ]
    texts = (" yes, 42 ", "no\n")
    sides = [
        plain_messages(policy.tokenizer, [Message(role="assistant", content=text)])
        for text in texts
    ]
    common: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    common |= {"report_to": "none"}
    row = {"prompt": plain_messages(policy.tokenizer, prompt)}
    pair = row | {"chosen": sides[0], "rejected": sides[1]}
    dpo = trl_rows(DPOTrainer, policy, DPOConfig(**common), [pair])[0]
    lesson = row | {"completion": sides[0]}
    sft = trl_rows(SFTTrainer, policy, SFTConfig(**common), [lesson])[0]
    before, after = encode(policy.tokenizer, prompt, texts[0])
    assert dpo["prompt_ids"] == before
    assert dpo["chosen_ids"] == after
    assert dpo["rejected_ids"] == encode(policy.tokenizer, prompt, texts[1])[1]
    assert sft["input_ids"] == before + after
    assert sft["labels"] == [-100] * len(before) + after


def test_a_template_whose_prompt_is_no_prefix_is_refused(policy: Policy) -> None:
    import copy

    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = "{{ messages | length }}{% if add_generation_prompt %}go{% endif %}"
    with pytest.raises(ValueError, match="beginning of prompt and response"):
        encode(tokenizer, [Message(role="user", content="u")], "a")


PARTS = ["<|end|>", "<|user|>", "<|pad|>", "<|", "|>", "end", "<|en", "d|>", "<", ">", "|", BREAK]


@given(st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=5)), max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_no_typed_text_becomes_a_control_token(text: str) -> None:
    check_no_control(made_once(), text)


MADE: list[Policy] = []


def made_once() -> Policy:
    """One policy for all examples; hypothesis does not mix with module fixtures."""
    if not MADE:
        MADE.append(make_policy(TALKS, SMALL, seed=0))
    return MADE[0]


def check_no_control(policy: Policy, text: str) -> None:
    tokenizer = policy.tokenizer
    control = set(tokenizer.added_tokens_decoder)
    written = tokenizer(plain(tokenizer, text), add_special_tokens=False)["input_ids"]
    assert control.isdisjoint(written)
    if not any(token in text for token in tokenizer.get_added_vocab()):
        assert plain(tokenizer, text) == text
    assert plain(tokenizer, text).replace(BREAK, "") == text.replace(BREAK, "")


def test_tokens_that_overlap_are_all_cut(policy: Policy) -> None:
    import copy

    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "|a|", "<|a|><|a|>"]})
    check_no_control(Policy(policy.model, tokenizer), "x<|a|><|a|>|a|<|a|>")


@pytest.mark.skipif(not SPECIAL.exists(), reason="the shared data folder is not here")
def test_control_tokens_of_other_models_typed_in_real_rows_stay_text(policy: Policy) -> None:
    for line in SPECIAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for turn in [*row["prompt"], *row["chosen"], *row["rejected"]]:
            check_no_control(policy, turn["content"])
        before, after = encode(policy.tokenizer, row["prompt"], row["chosen"][0]["content"])
        ends = (before + after).count(policy.tokenizer.eos_token_id)
        assert ends == len(row["prompt"]) + 1


def test_policy_location_finds_a_model_or_follows_a_pointer(tmp_path: Path) -> None:
    assert policy_location(tmp_path) == (str(tmp_path / "model"), None)
    (tmp_path / "model.json").write_text('{"model": "org/name", "revision": ""}', encoding="utf-8")
    assert policy_location(tmp_path) == ("org/name", None)


def refused(location: Path | str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_policy(str(location), None, "cpu", "float32")
    assert "sft.model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_safe_model_are_refused(policy: Policy, tmp_path: Path) -> None:
    import torch

    refused(tmp_path / "nowhere", "is no folder")
    refused(tmp_path, "has no config.json")
    folder = tmp_path / "model"
    save_policy(policy, folder)
    (folder / "model.safetensors").rename(folder / "aside")
    refused(folder, "has no weights")
    torch.save(policy.model.state_dict(), folder / "pytorch_model.bin")
    refused(folder, "only pickled weights")
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    refused(folder, "cannot be loaded")
    (folder / "aside").rename(folder / "model.safetensors")
    (folder / "chat_template.jinja").unlink()
    refused(folder, "no chat template")


def test_a_hub_model_without_a_network_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("no-such-org/no-such-model", "cannot be loaded")


def test_prompt_tokens_end_where_the_assistant_begins(policy: Policy) -> None:
    ids = prompt_tokens(policy.tokenizer, [Message(role="user", content="hi")])
    assert policy.tokenizer.convert_ids_to_tokens(ids)[-1] == "<|assistant|>"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vocabulary": 20}, "sft.scratch.vocabulary=20"),
        ({"width": 97}, "sft.scratch.width=97"),
        ({"layers": 0}, "sft.scratch.layers=0"),
        ({"heads": 0}, "sft.scratch.heads=0"),
        ({"initializer_range": 0.0}, "sft.scratch.initializer_range=0.0"),
    ],
)
def test_impossible_sizes_are_named(change: dict[str, Any], problem: str) -> None:
    assert any(line.startswith(problem) for line in Scratch(**change).problems("sft.scratch"))
    assert not list(Scratch().problems("sft.scratch"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_model_of_an_artifact_is_not_used_when_a_byte_of_it_has_changed(
    policy: Policy, tmp_path: Path, name: str
) -> None:
    schema = columns(step=pa.int32())

    def run(draft: Draft) -> None:
        save_policy(policy, draft.file("model"))
        draft.write(schema.empty_table())

    made = Shelf(tmp_path).make(Work("sft", 1, {}, {}), "policy", schema, {}, run)
    assert policy_location(made.folder) == (str(made.folder / "model"), None)
    path = made.folder / "model" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    check_written.cache_clear()  # as in another process
    with pytest.raises(UserError, match=f"{path} is not what was written.*Remove the folder"):
        policy_location(made.folder)
