"""What is measured: models with random weights, token ids with random lengths, and the floor.

Everything is built here from a seed, so a workload is the same on every machine and needs no
download. Lengths are log-normal, as those of real prompts and responses are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

BETA = 0.1
IGNORED = -100
"""Label of a token that carries no loss."""


class Shape(NamedTuple):
    """A Llama-style model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    dtype: str
    """Measured in this one unless told otherwise."""


SIZES = {
    "T": Shape(64, 128, 2, 4, 2, 512, "float32"),
    "S": Shape(256, 1024, 4, 4, 4, 4_096, "float32"),
    "M": Shape(768, 2048, 12, 12, 12, 8_192, "bfloat16"),
    # Layers and vocabulary of Qwen2.5-0.5B, 6 of its 24 layers: the output head is most of it.
    "Q": Shape(896, 4864, 6, 14, 2, 151_936, "bfloat16"),
    # For a GPU: the shapes of Qwen2.5-0.5B, Qwen2.5-1.5B and Llama-3.1-8B.
    "0.5B": Shape(896, 4864, 24, 14, 2, 151_936, "bfloat16"),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936, "bfloat16"),
    "8B": Shape(4096, 14336, 32, 32, 8, 128_256, "bfloat16"),
}


class Lengths(NamedTuple):
    """Tokens: log-normal with this mean before it is cut to the two ends."""

    mean: float
    shortest: int
    longest: int

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        spread = 0.6
        drawn = random.lognormal(np.log(self.mean) - spread**2 / 2, spread, count)
        return drawn.clip(self.shortest, self.longest).astype(int)


class Workload(NamedTuple):
    """How many responses and pairs a prompt has, and how long they are."""

    size: str
    """Model measured with, unless told otherwise."""

    prompts: int
    """As many prompts, unless told otherwise."""

    prompt: Lengths
    responses: tuple[Lengths, ...]
    """One for each response of a prompt."""

    pairs: int
    """Different (chosen, rejected) pairs a prompt; with 1, the first is preferred to the second."""


WORKLOADS = {
    "pairs": Workload(
        "M", 16, Lengths(120, 8, 384), (Lengths(120, 8, 256), Lengths(110, 8, 256)), 1
    ),
    "eight": Workload("M", 4, Lengths(200, 16, 512), (Lengths(200, 16, 512),) * 8, 8),
    "vocabulary": Workload("Q", 12, Lengths(200, 16, 512), (Lengths(20, 4, 64),) * 2, 1),
}


@dataclass(frozen=True)
class Measuring:
    """On which model, where and how a workload is measured."""

    size: str
    dtype: str = "float32"
    device: str = "cpu"
    rank: int = 16
    dim: int = 1024
    batch_tokens: int = 2048
    pairs_run: int = 16
    """Pairs that contenders run which take one at a time; the rest is scaled."""

    def model(self) -> Any:
        """The random model, always with the same weights, in evaluation mode."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = SIZES[self.size]
        config = LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            use_cache=False,
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, self.dtype))
        return model.eval()


@dataclass(frozen=True)
class Tokens:
    """A workload in token ids: n responses and p pairs of ``count`` prompts."""

    count: int
    prompts: list[list[int]]
    """(n,) The prompt of each response; the responses of a prompt follow one another."""

    responses: list[list[int]]
    """(n,)"""

    reference: np.ndarray
    """(n,) float64: nats under the reference, of the size a random model gives."""

    pairs: np.ndarray
    """(p, 2) int64: the rows of the chosen and of the rejected response."""

    def length(self, row: int) -> int:
        """Tokens of a response with its prompt."""
        return len(self.prompts[row]) + len(self.responses[row])

    def pair_tokens(self, pairs: np.ndarray) -> int:
        """Tokens of these pairs when each is two sequences, padding not counted."""
        return sum(self.length(row) for row in pairs.flat)


def tokens_of(name: str, count: int, seed: int, vocabulary: int) -> Tokens:
    """``count`` prompts of the workload ``name``."""
    workload = WORKLOADS[name]
    random = np.random.default_rng(seed)

    def texts(lengths: Lengths) -> list[list[int]]:
        drawn = lengths.draw(random, count)
        return [random.integers(3, vocabulary, length).tolist() for length in drawn]

    prompts = texts(workload.prompt)
    columns = [texts(lengths) for lengths in workload.responses]
    responses = [column[number] for number in range(count) for column in columns]
    lengths = np.array([len(response) for response in responses])
    reference = -lengths * np.log(vocabulary) + random.normal(0, 3, len(lengths))
    depth = len(workload.responses)
    return Tokens(
        count=count,
        prompts=[prompt for prompt in prompts for _ in range(depth)],
        responses=responses,
        reference=reference,
        pairs=_pairs(random, count, depth, workload.pairs),
    )


def _pairs(random: np.random.Generator, count: int, depth: int, pairs: int) -> np.ndarray:
    """(count * pairs, 2) rows: different pairs of two different responses of one prompt."""
    ordered = np.array([(a, b) for a in range(depth) for b in range(depth) if a != b])
    chosen = [
        ordered[:1] if pairs == 1 else random.permutation(ordered)[:pairs] for _ in range(count)
    ]
    return np.concatenate([depth * number + rows for number, rows in enumerate(chosen)])


def bucketed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of like length together, the longest times their number within ``budget``."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pair_batches(data: Tokens, budget: int) -> list[np.ndarray]:
    """All pairs in padded batches of ``budget`` tokens, each an array (pairs, 2) of rows."""
    costs = [2 * max(data.length(chosen), data.length(rejected)) for chosen, rejected in data.pairs]
    return [data.pairs[batch] for batch in bucketed(costs, budget)]


def padding_share(data: Tokens, budget: int) -> float:
    """Of the tokens in ``pair_batches``: few pairs, or large batches, make the floor slower."""
    batches = pair_batches(data, budget)
    whole = sum(pairs.size * max(map(data.length, pairs.flat)) for pairs in batches)
    return 1 - data.pair_tokens(data.pairs) / whole


def padded(
    data: Tokens, rows: Sequence[int] | np.ndarray, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of whole sequences, padded on the right: (rows, length) int64 twice.

    A causal model needs no attention mask for padding on the right, and is faster without.
    """
    import torch

    shape = len(rows), max(data.length(row) for row in rows)
    tokens = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for place, row in enumerate(rows):
        prompt, response = data.prompts[row], data.responses[row]
        tokens[place, : data.length(row)] = torch.tensor(prompt + response)
        labels[place, len(prompt) : data.length(row)] = torch.tensor(response)
    return tokens.to(device), labels.to(device)


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(rows, length, words) logits -> (rows,) float32 nats, summed over the labelled tokens."""
    from torch.nn.functional import cross_entropy, pad

    shifted = pad(labels[:, 1:], (0, 1), value=IGNORED)
    wide = logits.float().flatten(0, 1)
    losses = cross_entropy(wide, shifted.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view_as(labels).sum(1)


def dpo_losses(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(2 p,) nats, the chosen before the rejected, and those of the reference -> (p,) losses."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = (log_probs - reference).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected))


def pair_losses(model: Any, data: Tokens, pairs: np.ndarray) -> torch.Tensor:
    """(p, 2) rows -> (p,) losses with their graph: two whole sequences a pair, all logits."""
    import torch

    rows = pairs.T.ravel()
    tokens, labels = padded(data, rows, model.device)
    reference = torch.tensor(data.reference[rows], dtype=torch.float32, device=model.device)
    return dpo_losses(log_probs(model(input_ids=tokens).logits, labels), reference)
