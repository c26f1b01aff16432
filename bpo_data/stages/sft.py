"""The policy that will answer: trained on seed responses, trained on, or taken as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bpo_data import disk, moments, training
from bpo_data.artifacts import Draft
from bpo_data.errors import UserError
from bpo_data.policy import (
    Policy,
    check_model,
    load_policy,
    plain_messages,
    save_policy,
)
from bpo_data.runtime import Runtime, quiet_libraries
from bpo_data.scratch import Scratch, make_policy
from bpo_data.tables import Message, columns
from bpo_data.work import HOW

VERSION = 1
LOG = {"loss": "loss", "learning_rate": "learning_rate", "accuracy": "mean_token_accuracy"}


@dataclass
class SftConfig:
    kind: str = "scratch"
    """``scratch`` (a new small Llama), ``continue`` (train ``model`` on) or ``given`` (use it)."""

    model: str = ""
    """A folder or a model of the hub, for ``continue`` and ``given``."""

    revision: str = ""
    """Branch, tag or commit of a hub model; empty means its main branch."""

    scratch: Scratch = field(default_factory=Scratch)
    """Sizes of the model, for ``scratch``."""

    take: str = "all"
    """Responses of a prompt to learn from: ``all`` of them, or the ``best`` scored one."""

    steps: int = 1500
    """Updates of the weights."""

    batch: int = 48
    """Responses an update."""

    accumulate: int = 1
    """Passes that a batch is split over, when it does not fit the memory at once."""

    learning_rate: float = 3e-3
    """Highest step size, for ``scratch``; a pretrained model wants about 1e-5."""

    warmup_steps: int = 50
    """Updates until the learning rate is full; it then falls as a cosine."""

    adam_beta1: float = 0.9
    """AdamW's memory of the gradient."""

    adam_beta2: float = 0.98
    """AdamW's memory of the squared gradient."""

    weight_decay: float = 0.01
    """AdamW's pull of the weights towards zero."""

    max_length: int = 0
    """Tokens of prompt and response, longer ones are cut; 0 means what the model can hold."""

    dtype: str = "float32"
    """Precision of the arithmetic: ``float32``, ``bfloat16`` on a GPU that has it, or ``auto``:
    bfloat16 where there is such a GPU."""

    gradient_checkpointing: bool = False
    """Compute activations twice to save memory, for large models."""

    keep_moments: bool = False
    """Keep AdamW's second moments beside the policy, for ``gradients.preconditioner=adam``: a file
    as large as the weights in float32."""

    seed: int = 0
    """Decides the first weights and the order of the rows."""

    save_steps: int = field(default=0, metadata=HOW)
    """Updates between checkpoints that the same command goes on from after a crash; only the last
    is kept. 0 leaves one when asked to stop."""

    trackers: list[str] = field(default_factory=list, metadata=HOW)
    """Programs that are told of the training, such as ``tensorboard``; empty tells none."""

    def problems(self) -> Iterator[str]:
        """One line for each setting that cannot work, before any work."""
        if self.kind not in ("scratch", "continue", "given"):
            yield f"sft.kind={self.kind}: choose scratch, continue or given."
        if self.kind in ("continue", "given") and not self.model:
            yield f"sft.kind={self.kind} needs sft.model: a folder or a model of the hub."
        if self.kind == "scratch" and self.model:
            yield f"sft.model={self.model} has no use with sft.kind=scratch. Use continue or given."
        if self.kind == "given" and self.keep_moments:
            yield "sft.keep_moments=true has no use with sft.kind=given, which trains nothing."
        if self.take not in ("all", "best"):
            yield f"sft.take={self.take}: choose all or best."
        if self.steps < 1:
            yield f"sft.steps={self.steps}: use at least 1."
        yield from self.scratch.problems("sft.scratch")
        yield from training.problems(self, "sft")


def outside(config: SftConfig) -> dict[str, str]:
    """Digests of a local model's files, so that a changed model is noticed."""
    found = disk.folder_digests(config.model)
    beside = moments.beside(config.model)
    return found | ({beside.name: disk.sha256(beside)} if found and beside.is_file() else {})


def schema(config: SftConfig) -> pa.Schema:
    """The training log; empty for ``kind=given``."""
    return columns(step=pa.int32(), **{name: pa.float32() for name in LOG})


def run(draft: Draft, config: SftConfig, runtime: Runtime, *, prompts: pa.Table) -> None:
    """Write ``model/`` and the training log, or ``model.json`` pointing to the given model.

    With ``keep_moments`` also ``model.moments.safetensors``.
    """
    quiet_libraries()
    if config.kind == "given":
        point_to_given(draft, config)
        return
    device = runtime.torch_device()
    lessons = chosen_lessons(prompts, config.take)
    policy = starting_policy(config, lessons, device)
    rows = training.fitting(
        policy,
        [(prompt, [response]) for prompt, response in lessons],
        training.longest(policy, config.max_length),
    )
    if not rows.kept:
        raise UserError(
            f"sft: {rows.dropped:,} of {len(lessons):,} prompts fill "
            f"{training.longest(policy, config.max_length)} tokens, which leaves no room for a "
            f"response. Raise sft.max_length and sft.scratch.positions." + rows.others
        )
    draft.note(rows.refused.total(), len(lessons), f"responses dropped: {rows.reason}")
    with training.quiet(), draft.bar(config.steps, "updates") as bar:
        trainer = make_trainer(draft, config, device, policy, [lessons[row] for row in rows.kept])
        lines = training.train(trainer, bar)
    save_policy(policy, draft.file("model"))
    if config.keep_moments:
        moments.save(trainer.optimizer, policy.model, moments.beside(draft.file("model")))
    draft.facts |= {
        "result": f"{config.steps:,} updates",
        "kind": config.kind,
        "responses": len(rows.kept),
        "cut": rows.cut,
        "dropped": rows.dropped,
        "refused": rows.refused.total(),
        "parameters": policy.model.num_parameters(),
        "vocabulary": len(policy.tokenizer),
        "loss": lines[-1]["loss"],
    }
    draft.write_log(pa.table(training.log_columns(lines, LOG)).cast(draft.schema))


def point_to_given(draft: Draft, config: SftConfig) -> None:
    """Write ``model.json`` and an empty log. Raises UserError when there is no such model."""
    check_model(config.model, config.revision or None)
    pointer = {"model": config.model, "revision": config.revision}
    draft.file("model.json").write_text(json.dumps(pointer), encoding="utf-8")
    draft.facts = {"result": "as given", "kind": config.kind, **pointer}
    draft.write(draft.schema.empty_table())


Lesson = tuple[list[Message], str]


def chosen_lessons(prompts: pa.Table, take: str) -> list[Lesson]:
    """(prompt, response) to learn from: the source's seed split, or without one all but its test.

    Raises UserError when no such prompt has a response.
    """
    splits = prompts["split"].to_pylist()
    wanted = ("seed",) if "seed" in splits else ("pool", None)
    lessons = []
    for prompt, given, split in zip(
        prompts["prompt"].to_pylist(), prompts["given"].to_pylist(), splits, strict=True
    ):
        if split in wanted:
            lessons += [(prompt, response["text"]) for response in taken(given, take)]
    if not lessons:
        raise UserError(
            "sft has no responses to learn from: the source gives none with its prompts. "
            "Name the column of responses in load.columns, or use sft.kind=given sft.model=..."
        )
    return lessons


def taken(given: list[dict[str, Any]], take: str) -> list[dict[str, Any]]:
    """The responses of a prompt that are learnt from; with equal scores the first is the best."""
    written = [response for response in given if response["text"].strip()]
    if take == "all" or not written:
        return written
    floor = float("-inf")
    return [max(written, key=lambda one: floor if one["score"] is None else one["score"])]


def starting_policy(config: SftConfig, lessons: list[Lesson], device: str) -> Policy:
    """The policy before its first update."""
    if config.kind == "continue":
        return load_policy(config.model, config.revision or None, device, "float32")
    talks = ([*prompt, Message(role="assistant", content=text)] for prompt, text in lessons)
    policy = make_policy(talks, config.scratch, config.seed)
    policy.model.to(device)
    return policy


def make_trainer(
    draft: Draft, config: SftConfig, device: str, policy: Policy, lessons: list[Lesson]
) -> Any:
    """TRL's SFTTrainer with the loss on the response only."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    rows = [
        {
            "prompt": plain_messages(policy.tokenizer, prompt),
            "completion": plain_messages(
                policy.tokenizer, [Message(role="assistant", content=response)]
            ),
        }
        for prompt, response in lessons
    ]
    settings = SFTConfig(
        **training.arguments(config, "sft", device, draft.resumable("trainer")),
        lr_scheduler_type="cosine",
        logging_steps=max(1, config.steps // training.LOG_ROWS),
        train_sampling_strategy="group_by_length",
        completion_only_loss=True,
        max_length=training.longest(policy, config.max_length),
    )
    return SFTTrainer(
        model=policy.model,
        args=training.one_gpu(settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
