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
from transformers import PreTrainedModel

from bpo_data.gradients import attention
from bpo_data.gradients.capture import Capture, device_of
from bpo_data.gradients.compiled import CompiledBlocks
from bpo_data.gradients.layers import linear_layers
from bpo_data.gradients.packing import Packed, Padded, batches, groups, padded_batches
from bpo_data.gradients.passes import Passes
from bpo_data.gradients.projection import Sketch
from bpo_data.gradients.state import adapters as adapters_on
from bpo_data.gradients.state import bare, frozen, original_length, rotary

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
    all matrices. Which layers: see ``layers.linear_layers``, which also says what raises.

    The model keeps its device and dtype; projected sums are float32. It is untouched outside
    ``of``: hooks, ``requires_grad`` and train mode are as before, whatever happens inside, and no
    weight ever gets a ``.grad``. ``batch_tokens`` bounds a batch; another value changes the last
    bits of a row and no more.

    ``scales`` multiplies weight gradients number by number before they are projected, such as
    ``1 / (sqrt(v) + eps)`` of an optimiser's second moments: for every measured layer's name a
    tensor of its weight's shape. It costs what forming each response's weight gradients costs.

    ``share`` says whether responses to one prompt share its tokens; None tries it on a few tokens
    and, where the model's attention cannot do it, pads whole sequences instead. ``self.shares``
    says which it is. ValueError for True where it cannot be, and for a model whose rows depend on
    what is padded beside them.

    ``compile`` runs the model's blocks through torch.compile: a few graphs at the start, whose time
    ``self.compiled.seconds`` tells, and less time per token from then on.
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
        self.model = bare(model)
        chosen = linear_layers(self.model, head, layers)
        self._capture = Capture(chosen, rank, seed, scales)
        self._passes = Passes(self.model, self._capture)
        self.batch_tokens = batch_tokens
        self._alone_above = original_length(self.model)
        self._device = device_of(self.model.get_input_embeddings())
        self.compiled = CompiledBlocks(self.model) if compile else None
        self._warned = False
        self.shares = self._try_out(share)
        self._sketch = Sketch(len(self._capture.layers) * rank * rank, dim, seed)
        self.dim = self._sketch.dim
        self.layers = tuple(layer.name for layer in self._capture.layers)

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
            for rows, (sums, found) in self._all(prompts, responses, self._passes.gradients):
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
        off = torch.autocast(self._device.type, enabled=False)
        with torch.no_grad(), off, frozen(self.model), adapters_on(self.model, adapters):
            for rows, log_probs in self._all(prompts, responses, self._passes.log_probs):
                found[rows] = log_probs.cpu().numpy()
        return found

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        compiled = self.compiled.running() if self.compiled else nullcontext()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(self._device.type, enabled=False),
            frozen(self.model),
            self._capture.hooks(self.model),
            compiled,
        ):
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
        device = self._device
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        for row in rows:
            if lengths[row] > self._alone_above:
                yield Padded.of([row], prompts, responses, device, last=True)
        rows = [row for row in rows if lengths[row] <= self._alone_above]
        if self.shares:
            made = groups(rows, prompts, responses, self.batch_tokens)
            for batch in batches(made, self.batch_tokens):
                yield Packed.of(batch, prompts, responses, device)
        else:
            for some in padded_batches(rows, lengths, self.batch_tokens):
                yield Padded.of(some, prompts, responses, device)

    def _within_memory(
        self, batch: Packed | Padded, measure: Callable[[Packed | Padded], T]
    ) -> T | None:
        """What ``measure`` makes of a batch; None with a smaller ``batch_tokens`` if it does not
        fit."""
        try:
            if self._alone_above == float("inf"):
                return measure(batch)
            with rotary(self.model):
                return measure(batch)
        except torch.OutOfMemoryError:
            if len(batch.rows) == 1:
                raise
        # Outside the handler, where the traceback no longer holds the batch's tensors.
        torch.cuda.empty_cache()
        held = batch.tokens.numel() if isinstance(batch, Padded) else batch.tokens
        self.batch_tokens = max(1, min(self.batch_tokens, held) // 2)
        if not self._warned:
            log.warning(
                "a batch of gradients did not fit in memory: batch_tokens is %d from here on, and "
                "is halved again when it has to be",
                self.batch_tokens,
            )
        self._warned = True
        return None

    def _try_out(self, share: bool | None) -> bool:
        """Measure a few tokens in every way, and tell whether prompts are shared from now on.

        Raises ValueError when a row's numbers depend on what is padded beside it, when a layer's
        weight is used without the layer, and when ``share`` is True and cannot be.
        """
        size = min(1000, self._passes.head.vocabulary)
        draw = np.random.default_rng(0).integers(0, size, (2, 12)).tolist()
        prompts = [draw[0][:4], draw[1][:3], draw[0][:4]]
        responses = [draw[0][4:7], draw[0][7:9], draw[1][4:9]]

        def padded(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
            batch = Padded.of(rows, prompts, responses, self._device)
            return self._passes.gradients(batch)

        with self._measuring():
            self._learn(lambda: padded(0, 1, 2))
        if unmet := self._capture.unmet_weights():
            self._refuse_used(unmet)
        self._capture.drop_unmet()
        with self._measuring():
            expected = padded(0, 1, 2)
            alone = [padded(row) for row in range(3)]
            # Where 16 bits round, a row in another batch may even meet other experts.
            allowed = 1e-3 if self._exact else 0.5
            together = [torch.cat(side) for side in zip(*alone, strict=True)]
            if not _alike(together, expected, allowed):
                raise ValueError(
                    f"{type(self.model).__name__}: a row's numbers depend on what is padded beside "
                    f"it. Is it a causal model (is_decoder, causal in its configuration)?"
                )
            if share is False:
                return False
            shares = self._try_sharing(prompts, responses, expected)
        if share and not shares:
            raise ValueError(f"{type(self.model).__name__} cannot share prompts: use share=None")
        return shares

    def _learn(self, run: Callable[[], object]) -> None:
        """Find layers that nothing runs through, layers that read the same, and outputs changed in
        place."""
        families = nullcontext() if self.compiled else self._capture.families()
        try:
            # Not with torch.compile, which would make a graph for every family.
            with families:
                run()
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            self._capture.copy_outputs()
            run()

    def _refuse_used(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError naming a layer whose weight has a gradient without a call of it."""
        with torch.enable_grad(), frozen(self.model):
            for weight in weights.values():
                weight.requires_grad_(True)
            ids = torch.tensor([[1, 2, 3]], device=self._device)
            total = self.model(input_ids=ids, use_cache=False).logits.float().sum()
            found: Sequence[torch.Tensor | None] = [None] * len(weights)
            if total.requires_grad:
                found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"{name} is not called: the model multiplies with its weight by itself, so it "
                    f"cannot be measured. Give `layers` a regular expression that leaves it out."
                )

    def _try_sharing(
        self,
        prompts: list[list[int]],
        responses: list[list[int]],
        expected: tuple[torch.Tensor, torch.Tensor],
    ) -> bool:
        if not _knows_attention(self.model):
            return False
        made = groups(range(3), prompts, responses, 100)
        packed = Packed.of(made, prompts, responses, self._device)
        try:
            found = self._passes.gradients(packed)
        except attention.CannotShare:
            return False
        order = list(packed.rows)
        allowed = 1e-3 if self._exact else 0.1
        return _alike(found, [side[order] for side in expected], allowed)

    @property
    def _exact(self) -> bool:
        """Whether the model computes in at least 32 bits."""
        return self.model.dtype.itemsize >= 4


def _alike(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], allowed: float) -> bool:
    """Whether two measurements of the same rows agree, by the norm of what differs.

    Rows that hold NaN or infinity tell nothing: a token of the trial may have a broken embedding.
    """
    rows = [side.reshape(len(side), -1).isfinite().all(1) for side in expected]
    told = torch.stack(rows).all(0)
    return all(
        bool((have[told] - want[told]).norm() <= allowed * want[told].norm())
        for have, want in zip(found, expected, strict=True)
    )


def _check(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt) or not len(response):
            side = "response" if len(prompt) else "prompt"
            raise ValueError(f"{side} {number} has no tokens")


def _knows_attention(model: PreTrainedModel) -> bool:
    """Whether the model lets its attention be replaced and positions be given, and every layer's
    attention is of a kind that is told by its arguments."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in inspect.signature(model.get_decoder().forward).parameters
        and kinds <= {"full_attention", "sliding_attention"}
    )
