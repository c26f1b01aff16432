"""Direct preference optimisation on the dataset, by TRL, starting from the policy that answered."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import training
from bpo_data.errors import UserError, nearest
from bpo_data.policy import (
    Policy,
    load_policy,
    plain_messages,
    policy_location,
    save_policy,
)
from bpo_data.runtime import Runtime, quiet_libraries
from bpo_data.tables import columns

if TYPE_CHECKING:
    from bpo_data.artifacts import Draft

VERSION = 1
LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
"""The losses of TRL 1.16. It notices a name it does not know only at the first update."""
LOG = {
    "loss": "loss",
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logps_chosen": "logps/chosen",
}


@dataclass
class TrainConfig:
    loss: str = "sigmoid"
    """A loss of TRL, or several joined by ``+`` such as ``sigmoid+sft``."""

    loss_weights: list[float] = field(default_factory=list)
    """One weight for each joined loss; empty means 1 each."""

    label_smoothing: float = 0.0
    """Share of pairs taken to be the wrong way round, for the losses that know it."""

    beta: float = 0.1
    """Strength of the pull towards the starting policy."""

    steps: int = 0
    """Updates of the weights; 0 means as many as ``epochs`` asks for."""

    epochs: float = 1.0
    """Times each pair is seen, when ``steps`` is 0."""

    batch: int = 16
    """Pairs an update."""

    accumulate: int = 1
    """Passes that a batch is split over, when it does not fit the memory at once."""

    learning_rate: float = 1e-6
    """Highest step size; TRL's own default. The tiny policy of the quickstart wants 3e-4."""

    warmup_steps: int = 10
    """Updates until the learning rate is full; it then falls in a line."""

    adam_beta1: float = 0.9
    """AdamW's memory of the gradient."""

    adam_beta2: float = 0.999
    """AdamW's memory of the squared gradient."""

    weight_decay: float = 0.0
    """AdamW's pull of the weights towards zero."""

    max_length: int = 0
    """Tokens of prompt and response, longer ones are cut; 0 means what the model can hold."""

    dtype: str = "float32"
    """Precision of the arithmetic: ``float32``, or ``bfloat16`` on a GPU that has it."""

    gradient_checkpointing: bool = False
    """Compute activations twice to save memory, for large models."""

    precompute_ref_log_probs: bool = False
    """Measure the starting policy once beforehand, so that it need not stay in memory."""

    seed: int = 0
    """Decides the order of the pairs."""

    def problems(self) -> Iterator[str]:
        """One line for each setting that cannot work, before any work."""
        names = self.loss.split("+")
        for name in names:
            if name not in LOSSES:
                yield f"train.loss={self.loss}: {name} is no loss.{nearest(name, LOSSES)}"
        if self.loss_weights and len(self.loss_weights) != len(names):
            yield (
                f"train.loss_weights has {len(self.loss_weights)} numbers for {len(names)} losses "
                f"in train.loss={self.loss}. Give one for each."
            )
        if not 0 <= self.label_smoothing < 0.5:
            yield f"train.label_smoothing={self.label_smoothing}: use 0 to below 0.5."
        if "exo_pair" in names and self.label_smoothing == 0:
            yield "train.loss=exo_pair takes a logarithm of train.label_smoothing: set it above 0."
        if self.beta <= 0:
            yield f"train.beta={self.beta}: use a number above 0."
        if self.steps < 0:
            yield f"train.steps={self.steps}: use 0 or more."
        if self.epochs <= 0 and self.steps == 0:
            yield f"train.epochs={self.epochs}: use a number above 0, or set train.steps."
        yield from training.problems(self, "train")


def schema(config: TrainConfig) -> pa.Schema:
    """The training log: rewards in nats times beta, log-probabilities in nats."""
    return columns(step=pa.int32(), **{name: pa.float32() for name in LOG})


def run(draft: Draft, config: TrainConfig, runtime: Runtime, *, dataset: pa.Table) -> None:
    """Write ``model/`` and the training log; pairs of the test split take no part."""
    quiet_libraries()
    device = runtime.torch_device()
    model, revision = policy_location(draft.inputs["policy"].folder)
    policy = load_policy(model, revision, device, "float32")
    pairs = dataset.filter(pc.equal(dataset["split"], "train"))
    pairs = pairs.select(["prompt", "chosen", "rejected"]).to_pylist()
    rows = fitting(policy, pairs, training.longest(policy, config.max_length))
    draft.note(rows.refused.total(), len(pairs), f"pairs dropped: {rows.reason}")
    with training.quiet(), draft.bar(config.steps, "updates") as bar:
        trainer = make_trainer(draft, config, device, policy, [pairs[row] for row in rows.kept])
        lines = training.train(trainer, bar)
    save_policy(policy, draft.file("model"))
    draft.facts |= {
        "result": f"{trainer.state.global_step:,} updates",
        "pairs": len(rows.kept),
        "cut": rows.cut,
        "dropped": rows.dropped,
        "refused": rows.refused.total(),
        "updates": trainer.state.global_step,
        "margin": lines[-1]["rewards/margins"],
        "accuracy": lines[-1]["rewards/accuracies"],
    }
    draft.write_log(pa.table(training.log_columns(lines, LOG)).cast(draft.schema))


def fitting(policy: Policy, pairs: list[dict[str, Any]], longest: int) -> training.Fitting:
    """Which pairs can be trained on. Raises UserError when none is left."""
    asked = [
        (pair["prompt"], [pair[side][0]["content"] for side in ("chosen", "rejected")])
        for pair in pairs
    ]
    rows = training.fitting(policy, asked, longest)
    if not rows.kept:
        raise UserError(
            f"train has no pairs left of {len(pairs):,} in the train split that fit "
            f"train.max_length={longest} tokens. Raise it, or raise allocate.budget." + rows.others
        )
    return rows


def make_trainer(
    draft: Draft, config: TrainConfig, device: str, policy: Policy, pairs: list[dict[str, Any]]
) -> Any:
    """TRL's DPOTrainer with a frozen copy of the policy as its reference."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    rows = [
        {side: plain_messages(policy.tokenizer, turns) for side, turns in pair.items()}
        for pair in pairs
    ]
    updates = config.steps or config.epochs * len(pairs) / config.batch
    settings = DPOConfig(
        **training.arguments(config, "train", device, draft.resumable("trainer")),
        num_train_epochs=config.epochs,
        lr_scheduler_type="linear",
        logging_steps=max(1, int(updates) // training.LOG_ROWS),
        loss_type=config.loss.split("+"),
        loss_weights=config.loss_weights or None,
        label_smoothing=config.label_smoothing,
        beta=config.beta,
        max_length=training.longest(policy, config.max_length),
        precompute_ref_log_probs=config.precompute_ref_log_probs,
    )
    reference = None if config.precompute_ref_log_probs else copy.deepcopy(policy.model)
    return DPOTrainer(
        model=policy.model,
        ref_model=reference,
        args=training.one_gpu(settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
