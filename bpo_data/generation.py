"""Responses of a policy, sampled so that what a row gets depends on that row alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpo_data.policy import Policy, TemplateRefuses, end_tokens, prompt_tokens
from bpo_data.tables import Message

if TYPE_CHECKING:
    import torch

NUMBERS = 1 << 26
"""Numbers held at once while tokens are drawn: half a gigabyte in float64."""
COPIES = 10
"""Numbers that drawing holds for each logit, at most."""


@dataclass(frozen=True)
class Sample:
    """A sampled response."""

    text: str
    state: str
    """``ok``; ``truncated`` (no end token came); ``empty``; ``too_long`` (the prompt fills the
    context, nothing was sampled); ``unencodable`` (the chat template refuses the prompt, nothing
    was sampled)."""
    tokens: int
    """Tokens sampled, the end token included."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The ids of those tokens, for who wants their probability; another cut of the text has
    another."""


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
    ids = [tokens_or_none(policy, prompt) for prompt in prompts]
    room = [min(max_new_tokens, policy.context - len(row)) if row else 0 for row in ids]
    found = [Sample("", "too_long" if row else "unencodable", 0) for row in ids]
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


def tokens_or_none(policy: Policy, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt; none at all where the chat template refuses it."""
    try:
        return prompt_tokens(policy.tokenizer, prompt)
    except TemplateRefuses:
        return []


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
    policy.model.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=pad)
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


def cut(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to and with the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def read(policy: Policy, tokens: list[int]) -> Sample:
    """The text of sampled tokens, control tokens left out."""
    ended = bool(tokens) and tokens[-1] in end_tokens(policy)
    # An end token that only the template names need not be a special one, which decode leaves out.
    text = policy.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
    if not ended:
        return Sample(text, "truncated", len(tokens), tuple(tokens))
    return Sample(text, "ok" if text.strip() else "empty", len(tokens), tuple(tokens))


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

        uniform = torch.from_numpy(self.uniform[:, self.step]).to(scores.device)[:, None]
        self.step += 1
        rows = max(1, NUMBERS // (COPIES * scores.shape[1]))
        drawn = torch.cat(
            [
                self.tokens(some, numbers)
                for some, numbers in zip(scores.split(rows), uniform.split(rows), strict=True)
            ]
        )
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)

    def tokens(self, scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """(n, vocabulary) logits and (n, 1) numbers from 0 to below 1 -> (n, 1) token ids."""
        import torch

        shares = torch.softmax(scores.double() / self.temperature, dim=-1)
        if self.top_p < 1:
            shares = nucleus(shares, self.top_p)
        reached = shares.cumsum(dim=-1)
        # right=True: a token of probability 0 spans nothing and is never drawn.
        drawn = torch.searchsorted(reached, uniform * reached[:, -1:], right=True)
        return drawn.clamp(max=scores.shape[1] - 1)


def nucleus(shares: torch.Tensor, top_p: float, first: int = 1024) -> torch.Tensor:
    """Probabilities (rows, n) with all but the likeliest tokens that reach ``top_p`` set to 0.

    Of equally likely tokens the one with the lower id counts as likelier. Only rows whose
    ``first`` likeliest tokens do not settle it are sorted whole, which takes many times longer.
    """
    import torch

    if shares.shape[1] <= first:
        return sorted_nucleus(shares, top_p)
    ordered, places = shares.topk(first, dim=-1)
    places, by_id = places.sort(dim=-1)
    ordered, by_share = ordered.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    places = places.gather(1, by_share)
    before = ordered.cumsum(dim=-1) - ordered
    # topk takes any of those equal to its last, so none of them may be needed.
    settled = ((before >= top_p) | (ordered > ordered[:, -1:])).all(dim=-1)
    kept = torch.zeros_like(shares).scatter(1, places, ordered.masked_fill(before >= top_p, 0.0))
    if not settled.all():
        kept[~settled] = sorted_nucleus(shares[~settled], top_p)
    return kept


def sorted_nucleus(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """What ``nucleus`` gives, from all probabilities in order."""
    ordered, places = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return shares.scatter(1, places, ordered.masked_fill(before >= top_p, 0.0))
