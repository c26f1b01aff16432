"""Preference optimisation on the dataset, by TRL's trainer, from the policy that answered.

That policy is the reference too, unless an online round brings another one as ``reference``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import adapters, disk, objectives, ranks, training, training_rows
from bpo_data.errors import UserError
from bpo_data.policy import (
    Policy,
    load_policy,
    policy_location,
    round_of,
    save_policy,
    write_round,
)
from bpo_data.runtime import Runtime, quiet_libraries
from bpo_data.tables import columns
from bpo_data.work import HOW

if TYPE_CHECKING:
    from bpo_data.artifacts import Draft

VERSION = 3
FALL = 1.0
"""Nats that the chosen responses' log-probability may end below the reference before it is said:
then they are on average e times less likely than before training."""
READ = ("prompt", "chosen", "rejected", "prompt_id", "score_chosen", "score_rejected")
LOG = {
    "loss": "loss",
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logps_chosen": "logps/chosen",
    "chosen_over_reference": "chosen_over_reference",
}


@dataclass
class TrainConfig:
    loss: str = "sigmoid"
    """A loss of TRL or of ``bpo_data.losses``, or several joined by ``+`` such as ``lr+sft``."""

    loss_options: dict[str, Any] = field(default_factory=dict)
    """Options of the losses, such as ``lam`` of sba; of TRL's losses those of its DPOConfig, such
    as ``ld_alpha``."""

    loss_weights: list[float] = field(default_factory=list)
    """One weight for each joined loss; empty means 1 each."""

    label_smoothing: float = 0.0
    """Share of pairs taken to be the wrong way round, for the losses that know it; 0 leaves
    jeffreys and js at a share of their own, 0.001."""

    beta: float = 0.1
    """Strength of the pull towards the reference; what it means depends on the loss."""

    beta_rejected: float = 0.0
    """Beta of the rejected responses, for losses that can have two; 0 means ``beta``."""

    weights: str = "none"
    """What each pair's loss is multiplied with: ``none``, ``margin`` (over the mean margin), or a
    column of the dataset such as ``usefulness``, as it is."""

    steps: int = 0
    """Updates of the weights; 0 means as many as ``epochs`` asks for."""

    epochs: float = 1.0
    """Times each pair is seen, when ``steps`` is 0."""

    batch: int = 16
    """Pairs an update; with a loss of lists, prompts."""

    processes: int = 1
    """Processes, each with a GPU of its own where there are any, that share each batch, by
    accelerate; sums come in another order, so it is part of what is made."""

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

    dtype: str = "auto"
    """Precision of the arithmetic: ``float32``, ``bfloat16`` on a GPU that has it, or ``auto``:
    bfloat16 where there is such a GPU."""

    lora_rank: int = 0
    """Rank of LoRA adapters that are trained in place of the weights, and then merged into them;
    0 trains the weights. Needs the package peft."""

    lora_alpha: float = 0.0
    """Scale of the adapters, over their rank; 0 means twice the rank."""

    lora_dropout: float = 0.0
    """Share of the adapters' inputs that are dropped while training."""

    lora_targets: list[str] = field(default_factory=list)
    """Names of the layers with adapters, such as ``q_proj``; empty means all linear layers but the
    output head."""

    quantize: str = "none"
    """``none``, or ``4bit``: the weights under LoRA adapters in 4 bits. Needs a GPU and the package
    bitsandbytes."""

    gradient_checkpointing: bool = False
    """Compute activations twice to save memory, for large models."""

    precompute_ref_log_probs: bool = False
    """Measure the reference once beforehand, so that it need not stay in memory."""

    reference_from: str = "policy"
    """Where the reference's log-probabilities come from: ``policy`` (the reference, which is the
    starting policy unless rounds bring another, runs beside the trained one, or once with
    ``precompute_ref_log_probs``), or ``gradients`` (as that stage measured them; no response may be
    cut)."""

    seed: int = 0
    """Decides the order of the pairs, and the first weights of adapters."""

    save_steps: int = field(default=0, metadata=HOW)
    """Updates between checkpoints that the same command goes on from after a crash; only the last
    is kept. 0 leaves one when asked to stop."""

    trackers: list[str] = field(default_factory=list, metadata=HOW)
    """Programs that are told of the training, such as ``tensorboard``; empty tells none."""

    def problems(self) -> Iterator[str]:
        """One line for each setting that cannot work, before any work."""
        yield from objectives.problems(self)
        if not 0 <= self.label_smoothing < 0.5:
            yield f"train.label_smoothing={self.label_smoothing}: use 0 to below 0.5."
        if self.beta <= 0:
            yield f"train.beta={self.beta}: use a number above 0."
        if self.beta_rejected < 0:
            yield f"train.beta_rejected={self.beta_rejected}: use a number above 0, or 0 for beta."
        if self.reference_from not in ("policy", "gradients"):
            yield f"train.reference_from={self.reference_from}: choose policy or gradients."
        yield from adapters.problems(self)
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
    several = config.processes > 1
    device = "cpu" if several else runtime.torch_device()  # then each process has its own
    policy = starting_policy(draft, config, device)
    table = dataset.filter(pc.equal(dataset["split"], "train"))
    pairs = table.select([name for name in READ if name in table.column_names]).to_pylist()
    rows = fitting(policy, pairs, training.longest(policy, config.max_length))
    draft.note(rows.refused.total(), len(pairs), f"pairs dropped: {rows.reason}")
    table = table.take(pa.array(rows.kept, pa.int64()))
    columns = training_rows.columns_for(config, table, draft.inputs, rows.cut)
    pairs = [pairs[row] for row in rows.kept]
    if objectives.has_lists(config):
        lessons = training_rows.of_lists(policy, pairs)
    else:
        lessons = training_rows.of_pairs(policy, pairs, columns)
    teaching = Teaching(draft, config, runtime, lessons, list(columns))
    if several:
        del policy
        ranks.together(config.processes, teaching)
        found = teaching.told()
    else:
        found = teaching.on(device, policy)
    number = round_of(draft.inputs["policy"].folder) + 1
    write_round(draft.folder, number)
    lines = found["lines"]
    for line in lines:
        line["chosen_over_reference"] = line["rewards/chosen"] / config.beta
    draft.facts |= {
        "result": f"{found['updates']:,} updates",
        "pairs": len(rows.kept),
        "cut": rows.cut,
        "dropped": rows.dropped,
        "refused": rows.refused.total(),
        "updates": found["updates"],
        "round": number,
        "first_loss": lines[0]["loss"] if lines[0]["step"] == 1 else None,
        "margin": lines[-1]["rewards/margins"],
        "accuracy": lines[-1]["rewards/accuracies"],
        "dtype": found["dtype"],
        "chosen_over_reference": end_of(lines, "chosen_over_reference"),
    }
    tell(draft)
    draft.write_log(pa.table(training.log_columns(lines, LOG)).cast(draft.schema))


@dataclass(frozen=True)
class Teaching:
    """A training that is ready to begin, here or in several processes at once."""

    draft: Draft
    config: TrainConfig
    runtime: Runtime
    lessons: list[dict[str, Any]]
    columns: list[str]

    def __call__(self, rank: int) -> None:
        """A process's part; the first leaves the model and what is to be told."""
        device = self.runtime.torch_device(process=rank)
        found = self.on(device, starting_policy(self.draft, self.config, device), rank)
        if rank == 0:
            disk.write_bytes(json.dumps(found).encode(), self.place())

    def place(self) -> Path:
        return self.draft.resumable("told") / "training.json"

    def told(self) -> dict[str, Any]:
        """What ``on`` returned in the first process."""
        found: dict[str, Any] = json.loads(self.place().read_text(encoding="utf-8"))
        return found

    def on(self, device: str, policy: Policy, rank: int = 0) -> dict[str, Any]:
        """Train, and write ``model/``; the log's lines, the updates and the precision."""
        draft, config = self.draft, self.config
        with training.quiet(), draft.bar(config.steps, "updates", shown=rank == 0) as bar:
            trainer = make_trainer(draft, config, device, policy, self.lessons, self.columns)
            try:
                lines = training.train(trainer, bar)
            except FloatingPointError as error:
                raise UserError(
                    f"train: {error} at update {trainer.state.global_step + 1}. Lower "
                    f"train.learning_rate or train.beta, or take another train.loss."
                ) from error
        if rank == 0:
            save_policy(adapters.merged(trainer, policy, draft, device), draft.file("model"))
        return {
            "lines": lines,
            "updates": trainer.state.global_step,
            "dtype": "bfloat16" if trainer.args.bf16 else "float32",
        }


def end_of(lines: list[dict[str, float]], name: str) -> float:
    """Mean of a figure over the last eighth of the log."""
    last = [line[name] for line in lines[-max(1, len(lines) // 8) :]]
    return sum(last) / len(last)


def tell(draft: Draft) -> None:
    """Say when the chosen responses have become unlikely."""
    ratio = draft.facts["chosen_over_reference"]
    if not ratio >= -FALL:
        draft.say(
            f"ALARM: the chosen responses ended {-ratio:.1f} nats below the reference (the bound "
            f"is {FALL:g}): training made them less likely. Try train.loss=balanced, dpop or "
            f"sigmoid+sft, or a smaller train.learning_rate"
        )


def starting_policy(draft: Draft, config: TrainConfig, device: str) -> Policy:
    """The policy before its first update, in 4 bits where that is asked for."""
    model, revision = policy_location(draft.inputs["policy"].folder)
    if config.quantize == "4bit":
        return adapters.load_in_4_bits(model, revision, device)
    return load_policy(model, revision, device, "float32")


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
    draft: Draft,
    config: TrainConfig,
    device: str,
    policy: Policy,
    rows: list[dict[str, Any]],
    columns: list[str],
) -> Any:
    """The trainer, with a frozen model as its reference where one has to run."""
    import datasets
    from transformers import set_seed
    from trl import DPOConfig

    from bpo_data.trainer import REFERENCE, Trainer

    datasets.disable_progress_bars()
    updates = config.steps or config.epochs * len(rows) / config.batch
    known = set(REFERENCE) <= set(columns)
    beforehand = known or config.precompute_ref_log_probs
    settings = DPOConfig(
        **training.arguments(config, "train", device, draft.resumable("trainer")),
        **objectives.trl_settings(config),
        num_train_epochs=config.epochs,
        lr_scheduler_type="linear",
        logging_first_step=True,
        logging_steps=max(1, int(updates) // training.LOG_ROWS),
        max_length=training.longest(policy, config.max_length),
        precompute_ref_log_probs=beforehand,
    )
    lora = adapters.settings(config)
    if lora:
        set_seed(config.seed)  # TRL 1.9 draws the adapters before it sets the seed
    return Trainer(
        objective=objectives.objective(config, [one for one in columns if one not in REFERENCE]),
        model=policy.model,
        ref_model=reference_model(draft, policy, device, known, beforehand or bool(lora)),
        args=training.one_gpu(settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        peft_config=lora,
    )


def reference_model(draft: Draft, policy: Policy, device: str, known: bool, itself: bool) -> Any:
    """What the loss compares with; None where it need not run, or the policy serves as it is.

    ``known`` says that its log-probabilities are in the dataset, ``itself`` that the policy can
    stand for itself: before its first update, or without its adapters.
    """
    if known:
        return None
    if "reference" in draft.inputs:
        model, revision = policy_location(draft.inputs["reference"].folder)
        return load_policy(model, revision, device, "float32").model
    return None if itself else copy.deepcopy(policy.model)
