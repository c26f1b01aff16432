"""TRL's DPOTrainer with our losses: the forward passes and the log are TRL's, the loss is ours.

Without an ``Objective`` nothing is changed: TRL's own losses and their weighted sums are TRL's.
With one, the model runs once; TRL is handed what came out for its metrics and for those terms of a
sum that are its own, and the others are worked out here from the same log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOTrainer
from trl.trainer.utils import selective_log_softmax

from bpo_data.batches import Collator
from bpo_data.losses import LIST, LOG_PROB, LOSSES, TOKENS, of_pairs

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns of a dataset: log ref of each response in nats. Where they are, no reference runs."""
WEIGHT = "weight"
"""Column of a dataset: what each pair's loss is multiplied with."""
LISTED = ("listed", "scores", "present")
"""Made of a dataset's columns ``list_ids`` and ``list_scores``, for losses of lists."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, some of which TRL works out."""

    ours: Mapping[str, float]
    """Names in ``losses.LOSSES`` -> weight in the sum."""

    theirs: Mapping[str, float] = field(default_factory=dict)
    """TRL's ``loss_type`` -> weight in the sum."""

    options: Mapping[str, Any] = field(default_factory=dict)
    beta: float = 0.1
    beta_rejected: float = 0.0
    """Beta of the rejected side; 0 is ``beta``."""

    columns: Sequence[str] = ()
    """Numbers of each row that the losses need, ``WEIGHT`` among them where pairs have one."""

    @property
    def lists(self) -> bool:
        return any(LOSSES[name].measures == LIST for name in self.ours)

    def pairs(self, now: Tensor, before: Tensor, columns: Mapping[str, Tensor]) -> Tensor | float:
        """Mean loss of our terms on pairs: log pi and log ref, (2, n) each, in nats."""
        total: Tensor | float = 0.0
        weight = columns.get(WEIGHT)
        for name, share in self.ours.items():
            if LOSSES[name].measures == LIST:
                continue
            sides = now if LOSSES[name].measures == LOG_PROB else now - before
            losses = of_pairs(
                LOSSES[name],
                sides[0],
                sides[1],
                self.beta,
                beta_rejected=self.beta_rejected,
                columns=columns,
                options=self.options,
            )
            total = total + share * (losses if weight is None else weight * losses).mean()
        return total

    def listed(self, ratios: Tensor, columns: Mapping[str, Tensor]) -> Tensor | float:
        """Mean loss of our terms on lists: c of each response, (n, k) in nats."""
        total: Tensor | float = 0.0
        for name, share in self.ours.items():
            if LOSSES[name].measures == LIST:
                beside = {column: columns[column] for column in LOSSES[name].columns}
                total = total + share * LOSSES[name](ratios, self.beta, **beside).mean()
        return total


class Trainer(DPOTrainer):
    """DPOTrainer with an objective; without one it is DPOTrainer."""

    data_collator: Any
    precompute_ref_logps: bool

    def __init__(self, *, objective: Objective | None = None, **rest: Any) -> None:
        """``rest`` is DPOTrainer's. With an objective, ``args.loss_type`` is not looked at.

        A dataset with the columns ``REFERENCE`` wants ``args.precompute_ref_log_probs=True``: then
        no reference model is loaded and nothing is computed beforehand.
        """
        self.objective = objective
        super().__init__(**rest)
        if objective is not None:
            self.loss_types = list(objective.theirs)
            self.loss_weights = list(objective.theirs.values())
            self.data_collator = Collator(self.data_collator, objective.columns)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.objective is not None:
            own = [*self.objective.columns, "list_ids", "list_scores"]
            self._signature_columns += [name for name in own if name not in self._signature_columns]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's pass of the reference, unless the dataset brings what it would find."""
        if set(REFERENCE) <= set(dataset.column_names):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss, or the objective's with TRL's metrics. Raises FloatingPointError where it is
        not finite; without that, transformers logs it as 0 and trains on."""
        if self.objective is None:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            finite(found[0] if return_outputs else found)
            return found
        own = {*self.objective.columns, *LISTED}
        columns = {name: value for name, value in inputs.items() if name in own}
        batch = {name: value for name, value in inputs.items() if name not in own}
        heard = Heard(model)
        if not set(REFERENCE) <= set(batch):
            frozen = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            batch |= dict(zip(REFERENCE, frozen, strict=True))
        for_trl = batch
        if "listed" in columns:
            rows = pair_rows(len(batch["input_ids"]), len(columns["listed"]))
            heard.rows = rows
            for_trl = {
                name: value[: len(columns["listed"])] if name in REFERENCE else value[rows]
                for name, value in batch.items()
            }
            heard.inputs = batch
        theirs = self.trl_part(heard, for_trl, return_outputs, num_items_in_batch)
        outputs = None
        if return_outputs:
            theirs, outputs = theirs
        loss = theirs + self.own_part(heard.outputs, batch, columns)
        finite(loss)
        return (loss, outputs) if return_outputs else loss

    def trl_part(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        """TRL's terms of the sum, and its metrics; ``inputs`` hold what the reference said."""
        before = self.precompute_ref_logps
        self.precompute_ref_logps = True
        try:
            return super().compute_loss(model, inputs, return_outputs, items)
        finally:
            self.precompute_ref_logps = before

    def own_part(
        self, outputs: Any, batch: Mapping[str, Tensor], columns: dict[str, Tensor]
    ) -> Tensor | float:
        """Our terms of the sum, from what the model said of the whole batch."""
        assert self.objective is not None
        log_probs, tokens = summed(outputs, batch["input_ids"], batch["completion_mask"])
        before = torch.cat([batch[name] for name in REFERENCE])
        loss: Tensor | float = 0.0
        pairs = slice(None)
        if "listed" in columns:
            columns["means"] = (log_probs / tokens)[columns["listed"]]
            loss = self.objective.listed((log_probs - before)[columns["listed"]], columns)
            pairs = slice(0, len(columns["listed"]))
        now, then, lengths = (one.view(2, -1)[:, pairs] for one in (log_probs, before, tokens))
        columns |= dict(zip(TOKENS, lengths, strict=True))
        return loss + self.objective.pairs(now, then, columns)


class Heard:
    """A model whose outputs are kept; with ``rows``, the caller is told of those rows alone."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inputs: Mapping[str, Tensor] | None = None
        self.rows: Tensor | None = None
        self.outputs: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        if self.rows is None:
            self.outputs = self.model(**inputs)
            return self.outputs
        assert self.inputs is not None
        whole = {name: self.inputs.get(name, value) for name, value in inputs.items()}
        if "labels" in whole:
            unread = self.inputs["completion_mask"] == 0
            whole["labels"] = whole["input_ids"].masked_fill(unread, -100)
        self.outputs = self.model(**whole)
        every = len(whole["input_ids"])
        return SimpleNamespace(
            **{
                name: value[self.rows]
                if torch.is_tensor(value) and value.dim() and len(value) == every
                else value
                for name, value in self.outputs.items()
            }
        )


def finite(loss: Tensor) -> None:
    """Raise FloatingPointError where a loss is none."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}")


def pair_rows(rows: int, pairs: int) -> Tensor:
    """Which rows of a batch of chosen before rejected are the first ``pairs`` of them."""
    first = torch.arange(pairs)
    return torch.cat([first, first + rows // 2])


def summed(outputs: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) log pi of each response in nats and its tokens, from a model's outputs.

    Models in TRL 1.16 give log-probabilities of tokens; in TRL 1.9 logits.
    """
    counted = mask[:, 1:]
    if getattr(outputs, "log_probs", None) is not None:
        each = outputs.log_probs[:, -counted.size(1) :]
    else:
        each = selective_log_softmax(outputs.logits[:, :-1], ids[:, 1:])
    return (each * counted).sum(dim=1), counted.sum(dim=1).to(each.dtype)
