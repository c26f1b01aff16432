"""A small Llama and its tokenizer, made from nothing but the conversations it will learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpo_data.policy import Policy
from bpo_data.tables import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@dataclass
class Scratch:
    """Sizes of a small Llama made from nothing."""

    vocabulary: int = 640
    """Tokens at most, learnt from the conversations; 256 of them are the single bytes."""

    width: int = 96
    """Numbers that stand for a token inside the model."""

    layers: int = 2
    """Transformer blocks; more were slower and no better on the generated topics."""

    heads: int = 4
    """Attention heads; they share out the width."""

    hidden: int = 192
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
