"""One projected gradient of ``log pi(response | prompt)`` for every response.

A batch costs one forward pass and backward passes of the activations alone. Responses to one prompt
share its tokens: the prompt runs forward once, and each response's gradient goes back through it on
its own, from the top layer's keys and values down.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from bpo_data.gradients import attention
from bpo_data.gradients.capture import Capture, linear_layers
from bpo_data.gradients.compiled import CompiledBlocks
from bpo_data.gradients.head import Head
from bpo_data.gradients.packing import Flat, Packed, Padded, batches, groups, padded_batches
from bpo_data.gradients.projection import Sketch

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """What ``ResponseGradients.of`` returns for n responses, in the order they were given."""

    gradient: np.ndarray
    """(n, dim) float32: projected gradient of the summed log-probability, not scaled."""

    log_prob: np.ndarray
    """(n,) float32: nats, summed over the response's tokens, its end token included."""

    tokens: np.ndarray
    """(n,) int32: tokens of the response."""

    finite: np.ndarray
    """(n,) bool: False where the gradient or the log-probability holds NaN or infinity."""


class ResponseGradients:
    """Measures projected gradients of single responses under a causal language model.

    ``model`` is one of transformers, bare or with PEFT's adapters around its linear layers.
    Per linear layer a gradient G (outputs x inputs) is kept as L G R^T, rank x rank numbers; the
    layers follow one another in the order of their names, and a sparse sign sketch folds the whole
    to ``dim`` numbers where it is wider (else it is left whole, and ``self.dim`` says how wide).
    Inner products are on average those of the full gradients. ``seed`` and the layers' names decide
    all matrices. Which layers: see ``capture.linear_layers``, which also says what raises.

    The model keeps its device and dtype; projected sums are float32. It is untouched outside
    ``of``: hooks, ``requires_grad`` and train mode are as before, whatever happens inside, and no
    weight ever gets a ``.grad``. ``batch_tokens`` bounds a batch; another value changes the last
    bits of a row and no more.

    ``scales`` multiplies weight gradients number by number before they are projected, such as
    ``1 / (sqrt(v) + eps)`` of an optimiser's second moments: for every measured layer's name a
    tensor of its weight's shape. It costs what forming each response's weight gradients costs.

    ``share`` says whether responses to one prompt share its tokens; None tries it on a few tokens
    and, where the model's attention cannot do it, pads whole sequences instead. ``self.shares``
    says which it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rank: int,
        dim: int,
        seed: int,
        layers: str = "blocks",
        batch_tokens: int = 4096,
        scales: Mapping[str, torch.Tensor] | None = None,
        share: bool | None = None,
        compile: bool = False,
    ) -> None:
        if rank < 1 or dim < 1:
            raise ValueError(f"rank={rank}, dim={dim}: both must be at least 1")
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output head: not a language model")
        self.model = _bare(model)
        chosen = linear_layers(self.model, head, layers)
        self._capture = Capture(chosen, rank, seed, scales)
        self._sketch = Sketch(len(chosen) * rank * rank, dim, seed)
        self._head = Head(self.model)
        self.dim = self._sketch.dim
        self.layers = tuple(layer.name for layer in chosen)
        self.batch_tokens = batch_tokens
        self._compiled = CompiledBlocks(self.model) if compile else None
        self._depth: int | None = None
        """Attention layers that a forward pass meets."""

        self.shares = self._try_out() if share is None else share

    def of(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Measured:
        """Token ids of n prompts and of their responses (end token included) -> n rows.

        A prompt's ids and a response's ids, one after the other, are what the model reads; rows
        with equal prompts share their computation. Neither may be empty: ValueError names the first
        that is. A row that comes out as NaN or infinity is returned as it is, with ``finite``
        False, and does not touch the others. When memory runs out, ``batch_tokens`` is halved for
        good and the work goes on, until a single row does not fit.
        """
        _check(prompts, responses)
        gradient = np.zeros((len(prompts), self.dim), np.float32)
        log_prob = np.zeros(len(prompts), np.float32)
        with self._measuring():
            for rows, (sums, found) in self._all(prompts, responses, self._measure):
                gradient[rows] = self._sketch(sums.flatten(1) / self._capture.rank).cpu().numpy()
                log_prob[rows] = found.cpu().numpy()
        tokens = np.array([len(response) for response in responses], np.int32)
        finite = np.isfinite(gradient).all(axis=1) & np.isfinite(log_prob)
        return Measured(gradient, log_prob, tokens, finite)

    def log_probs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        adapters: bool = True,
    ) -> np.ndarray:
        """``of``'s log-probabilities alone, by forward passes: (n,) float32 nats.

        Without ``adapters`` they are those of the model that PEFT's adapters adapt, which is the
        reference of a policy trained with them. ValueError when there are none.
        """
        _check(prompts, responses)
        found = np.zeros(len(prompts), np.float32)
        with torch.no_grad(), _frozen(self.model), _adapters(self.model, adapters):
            for rows, log_probs in self._all(prompts, responses, self._only_log_probs):
                found[rows] = log_probs.cpu().numpy()
        return found

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        compiled = self._compiled.running() if self._compiled else nullcontext()
        with torch.enable_grad(), _frozen(self.model), self._capture.hooks(self.model), compiled:
            yield

    def _all(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        measure: Callable[[Packed | Padded], T],
    ) -> Iterator[tuple[list[int], T]]:
        """Batch by batch: row numbers and what ``measure`` makes of them."""
        left = set(range(len(prompts)))
        while left:
            for batch in self._batches(sorted(left), prompts, responses):
                found = self._within_memory(batch, measure)
                if found is None:
                    break
                left -= set(batch.rows)
                yield list(batch.rows), found

    def _batches(
        self,
        rows: list[int],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
    ) -> Iterator[Packed | Padded]:
        device = self.model.device
        if self.shares:
            made = groups(rows, prompts, responses, self.batch_tokens)
            for batch in batches(made, self.batch_tokens):
                yield Packed.of(batch, prompts, responses, device)
        else:
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
            for some in padded_batches(rows, lengths, self.batch_tokens):
                yield Padded.of(some, prompts, responses, device)

    def _within_memory(
        self, batch: Packed | Padded, measure: Callable[[Packed | Padded], T]
    ) -> T | None:
        """What ``measure`` makes of a batch; None with a smaller ``batch_tokens`` if it does not
        fit."""
        try:
            return measure(batch)
        except torch.OutOfMemoryError:
            if len(batch.rows) == 1:
                raise
        # Outside the handler, where the traceback no longer holds the batch's tensors.
        torch.cuda.empty_cache()
        self.batch_tokens = max(1, self.batch_tokens // 2)
        log.warning(
            "a batch of gradients did not fit in memory: batch_tokens is %d from here on",
            self.batch_tokens,
        )
        return None

    def _measure(self, batch: Packed | Padded) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, layers, rank, rank) sums and (rows,) log-probabilities."""
        if isinstance(batch, Packed):
            sums, log_probs = self._shared(batch)
        else:
            sums, log_probs = self._padded(batch)
        return sums[: len(batch.rows)], _by_row(log_probs, batch)

    def _only_log_probs(self, batch: Packed | Padded) -> torch.Tensor:
        """(rows,) log-probabilities, without gradients."""
        if isinstance(batch, Padded):
            decoder = self._head.decoder
            hidden = decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
            hidden = hidden.flatten(0, 1)[batch.place.to(hidden.device)]
        else:
            prompts = None
            if batch.shared is not None:
                prompts = attention.Call(batch.shared.tiles, last=self._depth)
                self._decode(batch.shared, prompts)
            own = attention.Call(batch.own.tiles, prompts, len(batch.passes))
            hidden = self._decode(batch.own, own)[0]
        chunks = self._head.chunks(len(batch.targets))
        parts = [self._head.only_log_probs(hidden[c], batch.targets[c]) for c in chunks]
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
                found = self._head.decoder(
                    input_ids=flat.tokens, position_ids=flat.positions, use_cache=False
                )
            except attention.Enough:
                return None
        return found.last_hidden_state

    def _padded(self, batch: Padded) -> tuple[torch.Tensor, torch.Tensor]:
        sinks = self._capture.begin(batch.grid, batch.tokens.numel())
        hidden = self._head.decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
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
        for chunk in self._head.chunks(len(targets)):
            sink = self._capture.begin_head(grid, chunk)
            found, slope, own = self._head.log_probs(hidden[chunk], targets[chunk], sink)
            parts.append(found)
            slopes.append(slope)
            if own is not None:
                on_head = own if on_head is None else on_head + own
        return torch.cat(parts), torch.cat(slopes), on_head

    def _with_head(self, sums: torch.Tensor, on_head: torch.Tensor | None) -> torch.Tensor:
        if on_head is not None:
            sums[:, self._capture.head] += on_head.to(sums.device)
        return sums

    def _try_out(self) -> bool:
        """Whether sharing a prompt gives the numbers of whole sequences, on a few tokens."""
        size = min(1000, self._head.vocabulary)
        draw = np.random.default_rng(0).integers(0, size, (2, 12)).tolist()
        prompts = [draw[0][:4], draw[1][:3], draw[0][:4]]
        responses = [draw[0][4:7], draw[0][7:9], draw[1][4:9]]
        with self._measuring():
            whole = Padded.of(range(3), prompts, responses, self.model.device)
            try:
                expected = self._measure(whole)
            except RuntimeError as error:
                if "inplace" not in str(error):
                    raise
                self._capture.copy_outputs()
                expected = self._measure(whole)
            if not _knows_attention(self.model):
                return False
            try:
                packed = Packed.of(groups(range(3), prompts, responses, 100), prompts, responses, self.model.device)
                found = self._measure(packed)
            except attention.CannotShare:
                return False
        order = [whole.rows.index(row) for row in packed.rows]
        close = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return all(
            bool((have - want[order]).norm() <= close * want.norm())
            for have, want in zip(found, expected, strict=True)
        )


def _check(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            side = "response" if len(prompt) else "prompt"
            raise ValueError(f"{side} {number} has no tokens")


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


@contextmanager
def _adapters(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """PEFT's adapters are off inside the block when they are not to be ``on``."""
    layers = [module for module in model.modules() if hasattr(module, "enable_adapters")]
    layers = [layer for layer in layers if layer is not model]
    if not on and not layers:
        raise ValueError("the model has no adapters to leave out")
    changed = [layer for layer in layers if not on and not layer.disable_adapters]
    try:
        for layer in changed:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in changed:
            layer.enable_adapters(True)


def _bare(model: PreTrainedModel) -> PreTrainedModel:
    """Without PEFT's and torch.compile's wrappers; adapters stay inside."""
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise ValueError("prompt-learning adapters put tokens of their own before the prompt")
    return model.get_base_model()


def _knows_attention(model: PreTrainedModel) -> bool:
    """Whether the model lets its attention be replaced and positions be given, and every layer's
    attention is of a kind that is told by its arguments."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in inspect.signature(model.get_decoder().forward).parameters
        and kinds <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no weight asks for a gradient; both as before afterwards."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        model.eval()
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
        for module in training:
            module.training = True
