"""The policy: a causal language model with its tokenizer, and how text becomes its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.tables import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
END = "<|end|>"
PAD = "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '"
    + END
    + "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
"""Pieces that tokens never cross: one digit, a word, a run of signs, a run of spaces."""
BREAK = "\u200b"
"""A space of no width: cuts a control token typed in a text without changing how it looks."""


@dataclass(frozen=True)
class Policy:
    """A model in eval mode and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """Tokens of prompt and response that the model can hold together."""
        return int(self.model.config.get_text_config().max_position_embeddings)


@dataclass
class Scratch:
    """Sizes of a small Llama made from nothing."""

    vocabulary: int = 1024
    """Tokens at most, learnt from the conversations; 256 of them are the single bytes."""

    width: int = 96
    """Numbers that stand for a token inside the model."""

    layers: int = 2
    """Transformer blocks; more were slower and no better on the generated topics."""

    heads: int = 4
    """Attention heads; they share out the width."""

    hidden: int = 256
    """Width of the feed-forward part of a block."""

    positions: int = 128
    """Tokens of prompt and response that the model can hold together."""

    initializer_range: float = 0.08
    """Spread of the first random weights; the usual 0.02 does not learn at this size."""

    def problems(self, section: str) -> Iterator[str]:
        """One line for each size that makes no model; ``section`` is where the sizes stand."""
        if self.vocabulary < 300:
            yield f"{section}.vocabulary={self.vocabulary}: use at least 300 tokens."
        for name in ("width", "layers", "heads", "hidden", "positions"):
            if getattr(self, name) < 1:
                yield f"{section}.{name}={getattr(self, name)}: use at least 1."
        if self.heads > 0 and self.width % (2 * self.heads):
            yield (
                f"{section}.width={self.width}: use a multiple of twice {section}.heads "
                f"(now {self.heads})."
            )
        if not 0 < self.initializer_range < 1:
            yield f"{section}.initializer_range={self.initializer_range}: use 0.02 to 0.2."


def make_policy(conversations: Iterable[list[Message]], config: Scratch, seed: int) -> Policy:
    """A Llama with random weights and a byte-level BPE tokenizer learnt from the conversations.

    Digits stay single tokens. The same conversations in the same order, sizes and seed give the
    same weights and the same tokenizer. Raises ValueError when there is no text to learn from.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [turn["content"] for turns in conversations for turn in turns]
    if not any(texts):
        raise ValueError("a tokenizer cannot be learnt from conversations without text")
    tokenizer = make_tokenizer(texts, config)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.positions,
        initializer_range=config.initializer_range,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    return Policy(model.eval(), tokenizer)


def make_tokenizer(texts: Sequence[str], config: Scratch) -> PreTrainedTokenizerBase:
    """Byte-level BPE of at most ``config.vocabulary`` tokens, with the roles as control tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    control = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=control,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
        model_max_length=config.positions,
        clean_up_tokenization_spaces=False,
    )


def load_policy(model: str, revision: str | None, device: str, dtype: str) -> Policy:
    """A policy from a folder or from the hub, in eval mode on ``device`` with ``dtype`` weights.

    Only safetensors weights are read and no code of the checkpoint is run. Raises UserError, one
    line naming sft.model, when there is no such model, its weights are pickled, or its tokenizer
    has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_location(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        loaded = AutoModelForCausalLM.from_pretrained(
            model, use_safetensors=True, dtype=dtype, **options
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"sft.model={model} cannot be loaded: {reason} Check the name and the network, or "
            f"name a folder with config.json, tokenizer and safetensors weights."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"sft.model={model}: its tokenizer has no chat template. Use an instruction-tuned "
            f"model, or add chat_template.jinja to its folder."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(loaded.to(device).eval(), tokenizer)


def check_location(model: str) -> None:
    """Raises UserError when a folder is missing, holds no model, or a pickled one."""
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise UserError(f"sft.model={model} is no folder. Name one, or a model of the hub.")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"sft.model={model} has no config.json. Name a saved transformers model.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        found = "only pickled weights, which can run code" if pickled else "no weights"
        raise UserError(
            f"sft.model={model} has {found}. Save it again with "
            f"save_pretrained(..., safe_serialization=True)."
        )


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a normal transformers folder: safetensors, tokenizer, chat template; no pickles.

    The bytes depend on weights and tokenizer alone, not on where they came from.
    """
    policy.model.config._name_or_path = ""
    policy.model.save_pretrained(folder, max_shard_size="2GB")
    policy.tokenizer.save_pretrained(folder)


def policy_location(folder: Path) -> tuple[str, str | None]:
    """(folder or hub name, revision) of the policy that an ``sft`` or ``train`` artifact holds."""
    pointer = folder / "model.json"
    if pointer.is_file():
        target = json.loads(pointer.read_text(encoding="utf-8"))
        return target["model"], target["revision"] or None
    return str(folder / "model"), None


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with every control token typed in it cut by a zero-width space, so it stays text.

    ``<|end|>`` written by a user becomes ``<``, U+200B, ``|end|>``: it looks the same and cannot
    end the turn. Text without control tokens comes back unchanged.
    """
    control = control_tokens(tokenizer)
    cut = True
    while cut:  # a cut may not, but another token might, leave a shorter token standing
        cut = False
        for token in control:
            if token in text:
                text = text.replace(token, token[0] + BREAK + token[1:] if token[1:] else BREAK)
                cut = True
    return text


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Strings that a tokenizer takes out of a text before it looks at words, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or len(token.content.strip()) > 1}
    return tuple(sorted(names | set(tokenizer.all_special_tokens), key=lambda name: (-len(name), name)))


def plain_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]
) -> list[dict[str, str]]:
    """The messages with ``plain`` contents, as chat templates and trainers take them."""
    return [
        {"role": turn["role"], "content": plain(tokenizer, turn["content"])} for turn in messages
    ]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt up to where the assistant begins to write."""
    turns = plain_messages(tokenizer, prompt)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return list(ids)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids), the completion with its end token: as TRL's trainers cut them.

    Raises ValueError when the template does not write the prompt as the beginning of the whole.
    """
    turns = plain_messages(tokenizer, prompt)
    answer = {"role": "assistant", "content": plain(tokenizer, response)}
    before = prompt_tokens(tokenizer, prompt)
    whole = list(tokenizer.apply_chat_template([*turns, answer], return_dict=False))
    if whole[: len(before)] != before:
        raise ValueError(
            "the chat template does not write the prompt as the beginning of prompt and response"
        )
    return before, whole[len(before) :]
