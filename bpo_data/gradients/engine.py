"""One projected gradient of ``log pi(response | prompt)`` for every response.

A batch costs one forward pass and a backward pass of the activations alone. Sequences are padded on
the right, where a causal model cannot look, so no attention mask is needed and padding changes
nothing; the output head sees completion positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from bpo_data.gradients.capture import Capture, linear_layers
from bpo_data.gradients.projection import Sketch


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
    weight ever gets a ``.grad``. ``batch_tokens`` bounds a padded batch; another value changes the
    last bits of a row and no more.
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
    ) -> None:
        if rank < 1 or dim < 1:
            raise ValueError(f"rank={rank}, dim={dim}: both must be at least 1")
        self.model = model
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output head: not a language model")
        self._head: nn.Module = head
        chosen = linear_layers(model, head, layers)
        self._capture = Capture(chosen, rank, seed)
        self._sketch = Sketch(len(chosen) * rank * rank, dim, seed)
        self.dim = self._sketch.dim
        self.layers = tuple(layer.name for layer in chosen)
        self.batch_tokens = batch_tokens

    def of(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Measured:
        """Token ids of n prompts and of their responses (end token included) -> n rows.

        A prompt's ids and a response's ids, one after the other, are what the model reads. Neither
        may be empty: ValueError names the first that is. A row that comes out as NaN or infinity is
        returned as it is, with ``finite`` False, and does not touch the others.
        """
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not len(prompt) or not len(response):
                side = "response" if len(prompt) else "prompt"
                raise ValueError(f"{side} {number} has no tokens")
        count = len(prompts)
        gradient = np.zeros((count, self.dim), np.float32)
        log_prob = np.zeros(count, np.float32)
        tokens = np.array([len(response) for response in responses], np.int32)
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        with torch.enable_grad(), _frozen(self.model), self._capture.hooks():
            for batch in batches(lengths, self.batch_tokens):
                gradient[batch], log_prob[batch] = self._measure(
                    [prompts[i] for i in batch], [responses[i] for i in batch]
                )
        finite = np.isfinite(gradient).all(axis=1) & np.isfinite(log_prob)
        return Measured(gradient, log_prob, tokens, finite)

    def _measure(
        self, prompts: list[Sequence[int]], responses: list[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """One batch: (rows, dim) gradients and (rows,) log-probabilities."""
        batch = _Batch.of(prompts, responses, self.model.device)
        self._capture.begin(batch.tokens, batch.rows, batch.positions)
        with _only(self._head, batch.rows, batch.positions):
            logits = self.model(input_ids=batch.tokens, use_cache=False).logits[0]
        targets = batch.targets.to(logits.device)
        log_probs = -nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        log_probs.sum().backward()
        # Summed in a padded table: adding at indices is not deterministic on a GPU.
        table = torch.zeros(batch.tokens.shape, device=logits.device)
        table[batch.rows.to(table.device), batch.positions.to(table.device)] = log_probs.detach()
        sums = self._capture.sums.flatten(1) / self._capture.rank
        return self._sketch(sums).cpu().numpy(), table.sum(1).cpu().numpy()


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split rows of these lengths into batches of like length, longest first.

    A batch's longest row times its number of rows stays within ``tokens``; a row longer than that
    is a batch of its own. Equal lengths keep their order, every row is in one batch.
    """
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= tokens:
            made[-1].append(row)
        else:
            made.append([row])
    return made


@dataclass(frozen=True)
class _Batch:
    """Sequences padded on the right, without their last token, which predicts nothing."""

    tokens: torch.Tensor
    """(sequences, length) int64."""

    rows: torch.Tensor
    """(count,) int64: the sequence of each response token of the batch ..."""

    positions: torch.Tensor
    """(count,) int64: ... and the position that predicts it."""

    targets: torch.Tensor
    """(count,) int64: the response tokens themselves."""

    @classmethod
    def of(
        cls,
        prompts: list[Sequence[int]],
        responses: list[Sequence[int]],
        device: torch.device,
    ) -> _Batch:
        length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)) - 1
        tokens = np.zeros((len(prompts), length), np.int64)
        rows, positions, targets = [], [], []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids = [*prompt, *response]
            tokens[row, : len(ids) - 1] = ids[:-1]
            rows.append(np.full(len(response), row))
            positions.append(np.arange(len(prompt) - 1, len(ids) - 1))
            targets.append(np.asarray(response))
        flat = (np.concatenate(parts) for parts in (rows, positions, targets))
        return cls(*(torch.from_numpy(part).to(device) for part in (tokens, *flat)))


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


@contextmanager
def _only(head: nn.Module, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """The output head sees the tokens at (rows, positions) alone, as a batch of one sequence.

    What the model does to its logits afterwards (scaling, soft-capping) acts on each number, so it
    stays in force. The usual ``logits_to_keep`` would keep as many as the longest response for all.
    """

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        place = rows.to(args[0].device), positions.to(args[0].device)
        return (args[0][place][None],)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
