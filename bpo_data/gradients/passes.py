"""What is computed of one batch: sums of projected gradients, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from bpo_data.gradients import attention
from bpo_data.gradients.capture import Capture
from bpo_data.gradients.head import Head
from bpo_data.gradients.packing import Flat, Packed, Padded


class Passes:
    """Forward and backward passes of a model whose layers ``capture`` has tapped."""

    def __init__(self, model: PreTrainedModel, capture: Capture) -> None:
        self.model = model
        self.head = Head(model)
        self._capture = capture
        self._depth: int | None = None
        """Attention layers that a forward pass meets."""

    def gradients(self, batch: Packed | Padded) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, layers, rank, rank) sums and (rows,) log-probabilities."""
        if isinstance(batch, Packed):
            sums, log_probs = self._shared(batch)
        else:
            sums, log_probs = self._padded(batch)
        return sums[: len(batch.rows)], _by_row(log_probs, batch)

    def log_probs(self, batch: Packed | Padded) -> torch.Tensor:
        """(rows,) log-probabilities, without gradients."""
        if isinstance(batch, Padded):
            decoder = self.head.decoder
            hidden = decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
            hidden = hidden.flatten(0, 1)[batch.place.to(hidden.device)]
        else:
            prompts = None
            if batch.shared is not None:
                prompts = attention.Call(batch.shared.tiles, last=self._depth)
                self._decode(batch.shared, prompts)
            own = attention.Call(batch.own.tiles, prompts, len(batch.passes))
            found = self._decode(batch.own, own)
            assert found is not None
            hidden = found[0]
        chunks = self.head.chunks(len(batch.targets))
        parts = [self.head.only_log_probs(hidden[c], batch.targets[c]) for c in chunks]
        return _by_row(torch.cat(parts), batch)

    def _shared(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        prompts, prompt_sinks = None, []
        if batch.shared is not None:
            prompts = attention.Call(batch.shared.tiles, last=self._depth)
            prompt_sinks = self._capture.begin(batch.shared.grid, batch.shared.tokens.shape[1])
            self._decode(batch.shared, prompts)
        own = attention.Call(batch.own.tiles, prompts, len(batch.passes))
        sinks = self._capture.begin(batch.own.grid, batch.own.tokens.shape[1])
        hidden = self._decode(batch.own, own)
        assert hidden is not None
        self._depth = own.layer
        log_probs, slope, on_head = self._through_head(hidden[0], batch.targets, batch.own_grid)
        sums = _sums([hidden], [slope[None]], sinks)
        if prompts is not None:
            for turn, (segments, rows) in enumerate(batch.passes):
                upstream = prompts.upstream(own, turn)
                more = turn < len(batch.passes) - 1
                sums[rows] += _sums(*upstream, prompt_sinks, more)[segments]
        return self._with_head(sums, on_head), log_probs

    def _decode(self, flat: Flat, call: attention.Call) -> torch.Tensor | None:
        """(1, tokens, width) hidden states; None once the call has met its last layer."""
        with attention.running(self.model, call):
            try:
                found = self.head.decoder(
                    input_ids=flat.tokens, position_ids=flat.positions, use_cache=False
                )
            except attention.Enough:
                return None
        return found.last_hidden_state

    def _padded(self, batch: Padded) -> tuple[torch.Tensor, torch.Tensor]:
        sinks = self._capture.begin(batch.grid, batch.tokens.numel())
        hidden = self.head.decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
        flat = hidden.flatten(0, 1)
        place = batch.place.to(flat.device)
        log_probs, slope, on_head = self._through_head(flat[place], batch.targets, batch.own_grid)
        whole = torch.zeros_like(flat).index_copy_(0, place, slope)
        return self._with_head(_sums([flat], [whole], sinks), on_head), log_probs

    def _through_head(
        self, hidden: torch.Tensor, targets: torch.Tensor, grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(tokens, width) hidden states -> (tokens,) log-probabilities, their slope on the hidden
        states, and where the head is measured its own (rows, rank, rank) sums."""
        parts, slopes, on_head = [], [], None
        for chunk in self.head.chunks(len(targets)):
            sink = self._capture.begin_head(grid, chunk)
            found, slope, own = self.head.log_probs(hidden[chunk], targets[chunk], sink)
            parts.append(found)
            slopes.append(slope)
            if own is not None:
                on_head = own if on_head is None else on_head + own
        return torch.cat(parts), torch.cat(slopes), on_head

    def _with_head(self, sums: torch.Tensor, on_head: torch.Tensor | None) -> torch.Tensor:
        if on_head is not None:
            sums[:, self._capture.head] += on_head.to(sums.device)
        return sums


def _sums(
    outputs: list[torch.Tensor],
    slopes: list[torch.Tensor],
    sinks: list[torch.Tensor],
    again: bool = False,
) -> torch.Tensor:
    """(segments, layers, rank, rank) float32: what a backward pass leaves in the sinks."""
    found: Sequence[torch.Tensor | None] = [None] * len(sinks)
    if outputs and outputs[0].requires_grad:
        found = torch.autograd.grad(outputs, sinks, slopes, retain_graph=again, allow_unused=True)
    device = outputs[0].device if outputs else sinks[0].device
    parts = [
        (torch.zeros_like(sink) if part is None else part).to(device)
        for part, sink in zip(found, sinks, strict=True)
    ]
    return torch.stack(parts, 1)


def _by_row(log_probs: torch.Tensor, batch: Packed | Padded) -> torch.Tensor:
    """(tokens,) -> (rows,) sums, in a padded table: adding at indices is not deterministic on a
    GPU."""
    table = nn.functional.pad(log_probs, (0, 1))[batch.own_grid.to(log_probs.device)]
    return table.sum(1)[: len(batch.rows)]
