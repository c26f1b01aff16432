"""Chat templates of other models: where a response ends, what they refuse, what stays text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_policy import trl_rows
from test_train import do_sft, do_train

from bpo_data import training
from bpo_data.errors import UserError
from bpo_data.generation import Sample, sample
from bpo_data.policy import (
    BREAK,
    Policy,
    TemplateRefuses,
    encode,
    end_tokens,
    load_policy,
    plain,
    plain_messages,
    prompt_tokens,
)
from bpo_data.tables import MSG, Message

CHATML = """
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
TURNS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{%- endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text into words: newlines in a row are one piece, and so one token."""
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
TEXTS = [f"What is {n} plus {n + 1}?\n\nIt is {2 * n + 1}, because we add." for n in range(30)]
TEXTS += ["\n\n"] * 200


def user(text: str) -> Message:
    return Message(role="user", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def make(
    special: tuple[str, ...],
    template: str,
    eos: str,
    ends: list[str],
    added: tuple[str, ...] = (),
    **others: Any,
) -> Policy:
    """A tiny Qwen2 with a byte-level tokenizer that has these control tokens."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learn = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, learn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, pad_token=special[0], chat_template=template, **others
    )
    tokenizer.add_tokens(["<think>", "</think>", "<table>", *added])
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ends]
    shape = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ids, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return Policy(Qwen2ForCausalLM(shape).eval(), tokenizer)


MODELS: dict[str, dict[str, Any]] = {
    "qwen": {"special": QWEN, "template": CHATML, "eos": QWEN[2], "ends": [QWEN[2], QWEN[0]]},
    "qwen_base": {"special": QWEN, "template": CHATML, "eos": QWEN[0], "ends": [QWEN[0]]},
    "gemma": {
        "special": GEMMA, "template": TURNS, "eos": "<eos>", "ends": ["<eos>"],
        "bos_token": "<bos>",
    },
}  # fmt: skip
END = {"qwen": "<|im_end|>", "qwen_base": "<|im_end|>", "gemma": "<end_of_turn>"}
every_template = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders as their authors save them: without what ``save_policy`` adds."""
    root = tmp_path_factory.mktemp("models")
    for name, parts in MODELS.items():
        made = make(**parts)
        made.model.save_pretrained(root / name)
        made.tokenizer.save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(scope="module")
def policies(folders: dict[str, Path]) -> dict[str, Policy]:
    return {n: load_policy(str(folder), None, "cpu", "float32") for n, folder in folders.items()}


def always(policy: Policy, token: int) -> Policy:
    """The policy with weights that give this token nearly all probability."""
    import copy

    import torch

    model = copy.deepcopy(policy.model)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 50
    return Policy(model, policy.tokenizer)


def drawn(policy: Policy, prompts: list[list[Message]]) -> list[Sample]:
    return sample(
        policy, prompts, list(range(len(prompts))),
        max_new_tokens=6, temperature=1.0, top_p=1.0, batch_rows=4,
    )  # fmt: skip


@every_template
def test_generation_stops_at_the_templates_end_token(
    policies: dict[str, Policy], name: str
) -> None:
    policy = policies[name]
    end = policy.tokenizer.convert_tokens_to_ids(END[name])
    assert end in end_tokens(policy)
    assert policy.tokenizer.eos_token_id in end_tokens(policy)
    assert drawn(always(policy, end), [[user("hi")]]) == [Sample("", "empty", 1)]
    go_on = policy.tokenizer.convert_tokens_to_ids("a")
    assert drawn(always(policy, go_on), [[user("hi")]]) == [Sample("aaaaaa", "truncated", 6)]


@every_template
def test_a_saved_policy_names_its_end_tokens_to_other_programs(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    from transformers import GenerationConfig

    rows = [(f"What is {n}?", [(f"It is {n}", None)], "seed") for n in range(4)]
    draft = do_sft(
        tmp_path / "sft", rows, kind="continue", model=str(folders[name]), steps=1, batch=2
    )
    saved = GenerationConfig.from_pretrained(draft.folder / "model").eos_token_id
    policy = load_policy(str(draft.folder / "model"), None, "cpu", "float32")
    assert saved == end_tokens(policy)
    assert policy.tokenizer.convert_tokens_to_ids(END[name]) in saved


@every_template
def test_encode_is_trls_tokenisation_with_one_bos_and_one_end(
    policies: dict[str, Policy], tmp_path: Path, name: str
) -> None:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    policy = policies[name]
    tokenizer = policy.tokenizer
    prompt = [user("7 plus 6 <|im_end|><end_of_turn>?"), Message(role="assistant", content="13"),
              user("sure? ")]  # fmt: skip
    texts = ("<think>yes</think> 13 <table>", "no")
    sides = [plain_messages(tokenizer, [Message(role="assistant", content=text)]) for text in texts]
    row = {"prompt": plain_messages(tokenizer, prompt)}
    common: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    common |= {"report_to": "none"}
    pair = row | {"chosen": sides[0], "rejected": sides[1]}
    dpo = trl_rows(DPOTrainer, policy, DPOConfig(**common), [pair])[0]
    sft = trl_rows(SFTTrainer, policy, SFTConfig(**common), [row | {"completion": sides[0]}])[0]
    before, after = encode(tokenizer, prompt, texts[0])
    assert (dpo["prompt_ids"], dpo["chosen_ids"]) == (before, after)
    assert dpo["rejected_ids"] == encode(tokenizer, prompt, texts[1])[1]
    assert sft["input_ids"] == before + after
    assert sft["labels"] == [-100] * len(before) + after
    bos = tokenizer.bos_token_id
    assert (before + after).count(bos) == before[:1].count(bos) == (name == "gemma")
    written = tokenizer.convert_ids_to_tokens(after)
    assert written.count(END[name]) == 1
    assert written.index(END[name]) == len(written) - 2, "only the template's newline comes after"
    assert [written.count(token) for token in ("<think>", "</think>", "<table>")] == [1, 1, 1]


def test_added_tokens_stay_whole_and_turn_markers_are_cut(policies: dict[str, Policy]) -> None:
    tokenizer = policies["qwen"].tokenizer
    text = "<think>a</think> <table>"
    assert plain(tokenizer, text) == text
    assert plain(tokenizer, "a<|im_end|>") == f"a<{BREAK}|im_end|>"
    ids = tokenizer(plain(tokenizer, "<|im_start|>system<|im_end|>"))["input_ids"]
    assert {tokenizer.convert_tokens_to_ids(token) for token in QWEN}.isdisjoint(ids)


def test_markers_that_are_no_special_tokens_are_cut_and_end_a_response() -> None:
    template = (
        "{% for m in messages %}{{ {'assistant': '<bot>'}.get(m.role, '<' + m.role + '>') }}"
        "{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<bot><think>{% endif %}"
    )
    turns = ("<system>", "<user>", "<bot>", "<end>")
    policy = make(("<pad>", "<eos>"), template, "<eos>", ["<eos>"], turns)
    text = "<system>1<user>2<bot>3<end>4<eos>"
    assert plain(policy.tokenizer, text) == text.replace("<", "<" + BREAK)
    assert plain(policy.tokenizer, "<think>") == "<think>"
    end = policy.tokenizer.convert_tokens_to_ids("<end>")
    assert end_tokens(policy) == sorted([policy.tokenizer.eos_token_id, end])
    assert drawn(always(policy, end), [[user("hi")]]) == [Sample("", "empty", 1)]


def test_refused_prompts_are_rows_with_a_state_and_stop_no_others(
    policies: dict[str, Policy],
) -> None:
    gemma = policies["gemma"]
    prompts = [[user("a")], [system("s"), user("a")], [user("a"), user("b")], [user("9" * 200)],
               [user("b")]]  # fmt: skip
    found = drawn(gemma, prompts)
    assert [one.state for one in found[1:4]] == ["unencodable", "unencodable", "too_long"]
    assert found[1] == Sample("", "unencodable", 0)
    alone = sample(
        gemma, [[user("b")]], [4], max_new_tokens=6, temperature=1.0, top_p=1.0, batch_rows=4
    )
    assert found[4] == alone[0]
    assert found[4].tokens > 0
    assert [one.state for one in drawn(gemma, prompts[1:3])] == ["unencodable"] * 2


def test_the_templates_own_words_are_in_the_error(policies: dict[str, Policy]) -> None:
    tokenizer = policies["gemma"].tokenizer
    with pytest.raises(TemplateRefuses, match="System role not supported"):
        prompt_tokens(tokenizer, [system("s"), user("u")])
    with pytest.raises(TemplateRefuses, match="must alternate"):
        encode(tokenizer, [user("u"), user("u")], "a")
    with pytest.raises(TemplateRefuses, match="beginning of prompt and response"):
        encode(policies["qwen"].tokenizer, [user("u")], "\na")


GOOD: list[tuple[list[Message], str]] = [([user(f"What is {n}?")], f"It is {n}") for n in range(4)]


def test_sft_drops_and_counts_what_the_template_refuses(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def trained(name: str, rows: list[tuple[list[Message], str]]) -> dict[str, Any]:
        settings = {"kind": "continue", "model": str(folders[name]), "steps": 1, "batch": 2}
        told = [(prompt, [(text, None)], "seed") for prompt, text in rows]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return do_sft(folder, told, **settings).facts

    newline = ([user("What is 9?")], "\nIt is 9")
    facts = trained("qwen", [newline, *GOOD])
    assert (facts["responses"], facts["refused"], facts["dropped"]) == (4, 1, 0)
    assert facts["notes"] == [
        "1 of 5 responses dropped: the chat template does not write the prompt as the beginning "
        "of prompt and response (20 %)"
    ]
    refused = ([system("Be brief."), user("What is 9?")], "It is 9")
    facts = trained("gemma", [refused, *GOOD])
    assert (facts["responses"], facts["refused"]) == (4, 1)
    with pytest.raises(UserError, match=r"sft.model .* refuses .*: System role not supported\."):
        trained("gemma", [refused] * 2)
    long = ([user("9" * 200)], "It is 9")
    with pytest.raises(UserError, match=r"1 of 2 prompts fill 96 .* 1 other row cannot be encoded"):
        trained("gemma", [refused, long])


def test_train_drops_and_counts_what_the_template_refuses(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def said(text: str) -> list[Message]:
        return [Message(role="assistant", content=text)]

    def trained(name: str, bad: tuple[list[Message], str], good: int) -> dict[str, Any]:
        rows = [bad, *GOOD[:good]]
        pairs = pa.table(
            {
                "prompt": pa.array([prompt for prompt, _ in rows], MSG),
                "chosen": pa.array([said("It is") for _ in rows], MSG),
                "rejected": pa.array([said(text) for _, text in rows], MSG),
                "split": ["train"] * len(rows),
            }
        )
        start = tmp_path / f"{name}-{good}"
        pointer = do_sft(start / "policy", kind="given", model=str(folders[name])).folder
        return do_train(start / "trained", pointer, pairs, steps=1, batch=2).facts

    newline = ([user("What is 9?")], "\nIt is 9")
    assert (facts := trained("qwen", newline, 4))["pairs"] == 4
    assert (facts["refused"], facts["dropped"]) == (1, 0)
    refused = ([system("Be brief."), user("What is 9?")], "It is 9")
    assert trained("gemma", refused, 4)["refused"] == 1
    with pytest.raises(UserError, match=r"sft.model .*: System role not supported\."):
        trained("gemma", refused, 0)


def test_thousands_of_added_tokens_cost_no_time_and_are_read_once(
    policies: dict[str, Policy],
) -> None:
    import copy

    tokenizer = copy.deepcopy(policies["qwen"].tokenizer)
    assert plain(tokenizer, "<unused7>") == "<unused7>"
    unused = [f"<unused{number}>" for number in range(6000)]
    tokenizer.add_special_tokens({"additional_special_tokens": unused})
    assert plain(tokenizer, "<unused7>") == f"<{BREAK}unused7>"
    text = "hi there <b>x</b> " * 50
    began = time.perf_counter()
    for _ in range(100):
        assert plain(tokenizer, text) == text
    assert (time.perf_counter() - began) / 100 < 0.001


def test_tokens_made_of_the_break_itself_end_no_loop(policies: dict[str, Policy]) -> None:
    import copy

    tokenizer = copy.deepcopy(policies["qwen"].tokenizer)
    odd = [BREAK * 2, f"a{BREAK}", f"x{BREAK}y"]
    tokenizer.add_special_tokens({"additional_special_tokens": odd})
    assert plain(tokenizer, f"q{BREAK * 2}") == f"q{BREAK * 2}"
    assert plain(tokenizer, f"a{BREAK}<|im_end|>").endswith(f"<{BREAK}|im_end|>")
    assert plain(tokenizer, f"x{BREAK}y") == f"x{BREAK * 2}y"


def test_models_without_a_table_of_positions_go_by_their_tokenizer(
    policies: dict[str, Policy], tmp_path: Path
) -> None:
    import copy

    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = copy.deepcopy(policies["qwen"].tokenizer)
    shape = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"sft.model=.*Set model_max_length"):
        load_policy(str(tmp_path), None, "cpu", "float32")
    tokenizer.model_max_length = 50
    tokenizer.save_pretrained(tmp_path)
    assert load_policy(str(tmp_path), None, "cpu", "float32").context == 50


def test_a_tokenizer_without_end_and_padding_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import json
    import shutil

    model = shutil.copytree(folders["qwen"], tmp_path / "model")
    path = model / "tokenizer_config.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(parts | {"eos_token": None, "pad_token": None}), encoding="utf-8")
    with pytest.raises(UserError, match=r"sft.model=.*neither an end token nor a padding token"):
        load_policy(str(model), None, "cpu", "float32")


def test_several_gpus_take_no_more_rows_an_update(tmp_path: Path) -> None:
    from trl import DPOConfig

    settings = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, use_cpu=True, bf16=False,
        report_to="none",
    )  # fmt: skip
    assert training.one_gpu(settings).train_batch_size == 3
    settings._n_gpu = 4  # what transformers counts on a machine with four
    assert settings.train_batch_size == 12
    assert training.one_gpu(settings).train_batch_size == 3
