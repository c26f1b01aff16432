"""Log-probabilities of responses under a policy, by a forward pass alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpo_data.policy import Policy, encode
from bpo_data.tables import Message

if TYPE_CHECKING:
    import numpy as np


LOGITS = 1 << 28
"""Logits held at once: a gigabyte in float32."""


def log_probs(policy: Policy, conversations: Sequence[tuple[Sequence[Message], str]]) -> np.ndarray:
    """log pi(response | prompt) in nats, summed over completion tokens: (n,) float64.

    A conversation longer than the policy's context counts up to where the context ends.
    """
    return log_probs_of_tokens(
        policy, [encode(policy.tokenizer, prompt, response) for prompt, response in conversations]
    )


def log_probs_of_tokens(policy: Policy, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """``log_probs`` of rows (prompt ids, completion ids): (n,) float64."""
    import numpy as np

    total = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: -sum(map(len, rows[row])))
    words = policy.model.config.get_text_config().vocab_size
    while order:
        longest = sum(map(len, rows[order[0]]))
        size = max(1, LOGITS // (longest * words))
        batch, order = order[:size], order[size:]
        total[batch] = forward(policy, [rows[row] for row in batch])
    return total


def forward(policy: Policy, rows: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """The sums of one right-padded batch, (n,) float64."""
    import torch

    device = policy.model.device
    whole = [(prompt + response)[: policy.context] for prompt, response in rows]
    width = max(map(len, whole))
    pad = policy.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in whole], device=device)
    place = torch.arange(1, width, device=device)
    start = torch.tensor([len(prompt) for prompt, _ in rows], device=device)[:, None]
    end = torch.tensor([len(row) for row in whole], device=device)[:, None]
    with torch.inference_mode():
        mask = torch.arange(width, device=device) < end
        logits = policy.model(ids, attention_mask=mask.long()).logits[:, :-1].float()
        token = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        counted = (place >= start) & (place < end)
        sums = token.double().masked_fill(~counted, 0.0).sum(dim=1)
    return sums.cpu().numpy()
