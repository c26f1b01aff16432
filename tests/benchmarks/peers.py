"""Peers that project layer by layer, called as their documents say, once for every pair.

None of them knows pairs or a loss of two sequences, so each has its work-around. What a class holds
is set up before the clock starts; ``run`` does the whole task once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.workloads import (
    BETA,
    IGNORED,
    Measuring,
    Tokens,
    bucketed,
    log_probs,
    padded,
)


class Bergson:
    """bergson's work-around for pairs.

    A forward pass gives each pair's weight, its collection runs over two rows a pair with plus and
    minus the weight as their ``advantage``, and the two stored rows are summed.
    """

    note = "forward pass, then 2 weighted rows a pair"

    def __init__(self, data: Tokens, how: Measuring) -> None:
        import bergson  # noqa: F401  # missing: skipped before a model is built

        self.data, self.how, self.model = data, how, how.model()
        # As its own worker prepares a model.
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().requires_grad_(True)

    def run(self) -> float:
        rows = self.data.pairs.ravel()
        weights = pair_weights(
            self.data, forward_log_probs(self.data, self.model, self.how.batch_tokens)
        )
        with tempfile.TemporaryDirectory() as folder:
            stored, _ = self.collect(rows, np.stack([weights, -weights], 1).ravel(), folder)
            assert (stored[0::2].astype(np.float32) + stored[1::2]).any()
        return 0.0

    def collect(
        self, rows: np.ndarray, weights: np.ndarray | None, folder: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) responses, by row -> (n, layers * rank * rank) gradients, (n,) loss."""
        import bergson
        from bergson.data import allocate_batches
        from datasets import Dataset, load_from_disk

        data, how = self.data, self.how
        lengths = [data.length(row) for row in rows]
        columns: dict[str, list[Any]] = {
            "input_ids": [data.prompts[row] + data.responses[row] for row in rows],
            "labels": [[IGNORED] * len(data.prompts[row]) + data.responses[row] for row in rows],
            "length": lengths,
        }
        if weights is not None:
            columns["advantage"] = weights.tolist()
        config = bergson.IndexConfig(
            run_path=f"{folder}/run",
            token_batch_size=how.batch_tokens,
            projection_dim=how.rank,
            loss_reduction="sum",
        )
        written = Path(config.partial_run_path)
        written.mkdir(parents=True)
        bergson.collect_gradients(
            self.model,
            Dataset.from_dict(columns),
            bergson.GradientProcessor({}, projection_dim=how.rank),
            config,
            batches=allocate_batches(lengths, how.batch_tokens),
        )
        loss = np.asarray(load_from_disk(str(written / "data.hf"))["loss"])
        return bergson.load_gradients(written), loss


class BergsonResponses(Bergson):
    """bergson at its best, which takes our identity: one row a response, no weights.

    It stores losses, so no forward pass comes first; pair gradients are combined from stored rows.
    In bfloat16 those losses are rounded to 8 bits, so only the time of this way is to be compared.
    """

    note = "1 row a response; pairs combined with our identity"

    def run(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            stored, loss = self.collect(np.arange(len(self.data.responses)), None, folder)
            weights = pair_weights(self.data, -loss)[:, None].astype(np.float32)
            chosen, rejected = self.data.pairs.T
            assert (weights * (stored[chosen].astype(np.float32) - stored[rejected])).any()
        return 0.0


def forward_log_probs(data: Tokens, model: Any, budget: int) -> np.ndarray:
    """(n,) float64 nats of all responses, by forward passes alone."""
    measured = np.zeros(len(data.responses))
    lengths = [data.length(row) for row in range(len(data.responses))]
    with torch.no_grad():
        for batch in bucketed(lengths, budget):
            tokens, labels = padded(data, batch, model.device)
            measured[batch] = log_probs(model(input_ids=tokens).logits, labels).cpu().numpy()
    return measured


def pair_weights(data: Tokens, measured: np.ndarray) -> np.ndarray:
    """(n,) nats -> (p,) beta sigmoid(-m): what the chosen side's negative log-probability gets."""
    ratio = measured - data.reference
    margin = BETA * (ratio[data.pairs[:, 0]] - ratio[data.pairs[:, 1]])
    return BETA / (1 + np.exp(margin))


class Dattri:
    """dattri's LoGra by bergson's work-around: two weighted rows a pair, rank x rank a layer."""

    note = "forward pass, then LoGra over 2 weighted rows a pair (rows left unsummed)"

    def __init__(self, data: Tokens, how: Measuring) -> None:
        from dattri.algorithm.logra import LoGraAttributor
        from dattri.task import AttributionTask

        self.data, self.how, self.model = data, how, how.model()
        work = AttributionTask(
            loss_func=weighted_loss, model=self.model, checkpoints=self.model.state_dict()
        )
        layers = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        ]
        self.attributor = LoGraAttributor(
            work,
            layer_names=layers,
            hessian="Identity",
            device=how.device,
            proj_dim=how.rank**2,
        )

    def run(self) -> float:
        data, how = self.data, self.how
        weights = pair_weights(data, forward_log_probs(data, self.model, how.batch_tokens))
        signed = torch.from_numpy(np.stack([weights, -weights], 1).ravel()).float()
        rows = data.pairs.ravel().tolist()
        places: Any = sorted(range(len(rows)), key=lambda place: -data.length(rows[place]))

        def collate(batch: list[int]) -> dict[str, torch.Tensor]:
            tokens, labels = padded(data, [rows[place] for place in batch], how.device)
            return {
                "input_ids": tokens,
                "labels": labels,
                "weights": signed[batch].to(how.device),
            }

        # Its metadata wants batches of one size.
        size = max(1, how.batch_tokens // data.length(rows[places[0]]))
        loader: Any = torch.utils.data.DataLoader(places, batch_size=size, collate_fn=collate)
        self.attributor.cache(loader)
        return 0.0


def weighted_loss(model: Any, batch: dict[str, torch.Tensor], device: str) -> torch.Tensor:
    measured = log_probs(model(input_ids=batch["input_ids"]).logits, batch["labels"])
    return -(batch["weights"] * measured).sum()
