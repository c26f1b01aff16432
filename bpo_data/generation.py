"""Responses of a policy, sampled so that what a row gets depends on that row alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_data.policy import Policy, prompt_tokens
from bpo_data.tables import Message

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sample:
    """A sampled response."""

    text: str
    state: str
    """``ok``; ``truncated`` (no end token came); ``empty``; ``too_long`` (the prompt fills the
    context, nothing was sampled)."""
    tokens: int
    """Tokens sampled, the end token included."""


def sample(
    policy: Policy,
    prompts: Sequence[Sequence[Message]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_rows: int,
    progress: Any = None,
) -> list[Sample]:
    """One response for each prompt, in their order; ``progress.update(rows)`` after each batch.

    Each row draws its tokens with numbers from its own seed (any integer from 0), so batch size
    and the other rows change nothing but the rounding of the logits. Temperature 0 takes the most
    likely token. A response ends early where the context of the policy ends.
    """
    ids = [prompt_tokens(policy.tokenizer, prompt) for prompt in prompts]
    room = [min(max_new_tokens, policy.context - len(row)) for row in ids]
    found = [Sample("", "too_long", 0)] * len(ids)
    for rows in batches(ids, room, batch_rows):
        drawn = generate(
            policy,
            [ids[row] for row in rows],
            [seeds[row] for row in rows],
            max_new_tokens=room[rows[0]],
            temperature=temperature,
            top_p=top_p,
        )
        for row, tokens in zip(rows, drawn, strict=True):
            found[row] = read(policy, tokens)
        if progress is not None:
            progress.update(len(rows))
    return found


def batches(ids: list[list[int]], room: list[int], batch_rows: int) -> Iterator[list[int]]:
    """Row numbers of like length and equal room, longest first; rows without room stand in none."""
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row)):
        if room[row] < 1:
            continue
        if batch and (len(batch) == batch_rows or room[row] != room[batch[0]]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def generate(
    policy: Policy,
    ids: list[list[int]],
    seeds: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    """New token ids of each row, up to and with its end token."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(len(row) for row in ids)
    pad = policy.tokenizer.pad_token_id
    device = policy.model.device
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
    ends = end_tokens(policy)
    own = policy.model.generation_config
    # generate() fills what we leave open from the model's own settings (top-k, penalties).
    policy.model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)
    try:
        with torch.inference_mode():
            written = policy.model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList(
                    [Draw(seeds, max_new_tokens, temperature, top_p)] if temperature > 0 else []
                ),
            )
    finally:
        policy.model.generation_config = own
    return [cut(row[width:], ends) for row in written.tolist()]


def end_tokens(policy: Policy) -> list[int]:
    """Ids that end a response: the tokenizer's end token and those the model names."""
    named = policy.model.generation_config.eos_token_id
    several = named if isinstance(named, list) else [named]
    return sorted({policy.tokenizer.eos_token_id, *several} - {None})


def cut(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to and with the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def read(policy: Policy, tokens: list[int]) -> Sample:
    """The text of sampled tokens, control tokens left out."""
    text = policy.tokenizer.decode(tokens, skip_special_tokens=True)
    if not tokens or tokens[-1] not in end_tokens(policy):
        return Sample(text, "truncated", len(tokens))
    return Sample(text, "ok" if text.strip() else "empty", len(tokens))


class Draw:
    """A logits processor that leaves only the token each row draws, so greedy search takes it.

    A row's token is where its own uniform number for this step falls in the cumulated
    probabilities (in float64): one number per token, drawn from the row's seed before anything is
    computed, whatever else is in the batch.
    """

    def __init__(self, seeds: list[int], steps: int, temperature: float, top_p: float) -> None:
        import numpy as np

        self.uniform = np.stack([np.random.default_rng(seed).random(steps) for seed in seeds])
        self.temperature = temperature
        self.top_p = top_p
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, length) ids, (rows, vocabulary) logits -> 0 for the drawn token, else -inf."""
        import torch

        shares = torch.softmax(scores.double() / self.temperature, dim=-1)
        if self.top_p < 1:
            shares = nucleus(shares, self.top_p)
        reached = shares.cumsum(dim=-1)
        uniform = torch.from_numpy(self.uniform[:, self.step]).to(scores.device)[:, None]
        # right=True: a token of probability 0 spans nothing and is never drawn.
        drawn = torch.searchsorted(reached, uniform * reached[:, -1:], right=True)
        self.step += 1
        alone = torch.full_like(scores, -torch.inf)
        return alone.scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)


def nucleus(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities (rows, n) with all but the likeliest tokens that reach ``top_p`` set to 0."""
    ordered, places = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return shares.scatter(1, places, ordered.masked_fill(before >= top_p, 0.0))
