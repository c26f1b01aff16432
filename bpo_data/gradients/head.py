"""Log-probabilities of tokens and their gradient on the hidden states, a few tokens at a time.

The logits of a chunk are the only (tokens x vocabulary) numbers that ever exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

LOGITS = 1 << 25
"""Logits held at once: 128 MiB in float32."""


class Head:
    """All that a causal language model does to its decoder's hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.vocabulary = model.config.get_text_config().vocab_size
        self.decoder = self._decoder()

    def chunks(self, tokens: int) -> Iterator[slice]:
        size = max(1, LOGITS // self.vocabulary)
        return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))

    def log_probs(
        self, hidden: torch.Tensor, targets: torch.Tensor, sink: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A chunk: (tokens, width) hidden states and (tokens,) ids of what they predict.

        Returns the log-probabilities, (tokens,) float32, the gradient of their sum on the hidden
        states, (tokens, width), and the one on ``sink``, the head's own.
        """
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_(True)
            logits = self._logits(leaf)
        with torch.no_grad():
            found, slope = _log_softmax(logits, targets.to(logits.device)[:, None])
        wanted = [leaf] if sink is None else [leaf, sink]
        made = torch.autograd.grad(logits, wanted, slope)
        return found, made[0], made[1] if len(made) > 1 else None

    def only_log_probs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As above without gradients."""
        with torch.no_grad():
            logits = self._logits(hidden).float()
            return logits.log_softmax(-1).gather(1, targets.to(logits.device)[:, None])[:, 0]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, vocabulary), with whatever the model does to them: scaling, soft-capping."""
        found = _Found(hidden[None])
        with _in_place_of(self.decoder, lambda *args, **settings: found):
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return self.model(input_ids=ids, use_cache=False).logits[0]

    def _decoder(self) -> nn.Module:
        """The part of the model whose hidden states reach the head without further layers."""

        def meet(*args: Any, **settings: Any) -> None:
            raise _Met

        head = set(self.model.get_output_embeddings().modules())
        children = list(self.model.children())
        for found in (self.model.get_decoder(), self.model.base_model, *children):
            if isinstance(found, nn.Module) and found is not self.model and found not in head:
                try:
                    with _in_place_of(found, meet), torch.no_grad():
                        ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
                        self.model(input_ids=ids, use_cache=False)
                except _Met:
                    return found
        raise ValueError(f"{type(self.model).__name__} has no decoder below its output head")


class _Met(Exception):
    """The model has called its decoder."""


def _log_softmax(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (tokens,) of targets (tokens, 1), and the slope on the logits."""
    shares = logits.float()
    shares = shares.clone() if shares.data_ptr() == logits.data_ptr() else shares
    total = shares.logsumexp(1, keepdim=True)
    found = shares.gather(1, targets) - total
    shares.sub_(total).exp_().neg_()
    shares.scatter_add_(1, targets, torch.ones_like(found))
    return found[:, 0], shares.to(logits.dtype)


class _Found:
    """Stands for a decoder's output of any class."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, int):
            return self.last_hidden_state if place == 0 else None
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _in_place_of(decoder: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The decoder runs ``forward`` instead of its own."""
    before = decoder.__dict__.get("forward")
    decoder.forward = forward
    try:
        yield
    finally:
        if before is None:
            del decoder.forward
        else:
            decoder.forward = before
