"""What the two training stages share: one way to call a TRL trainer, quietly and repeatably."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_data import disk, stopping
from bpo_data.errors import UserError, nearest, some
from bpo_data.policy import Policy, TemplateRefuses, encode
from bpo_data.tables import Message

DTYPES = ("float32", "bfloat16", "auto")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "swanlab")
LOG_ROWS = 64
"""Lines of a training log, about."""


def problems(config: Any, section: str) -> Iterator[str]:
    """One line for each optimiser setting, common to both stages, that cannot work."""
    for name in ("batch", "accumulate"):
        if getattr(config, name) < 1:
            yield f"{section}.{name}={getattr(config, name)}: use at least 1."
    shared = processes_of(config)
    if shared < 1:
        yield f"{section}.processes={shared}: use at least 1."
    elif config.accumulate > 0 and config.batch % (config.accumulate * shared):
        among = f" of {section}.processes={shared}" if shared > 1 else ""
        yield (
            f"{section}.batch={config.batch} cannot be split over {section}.accumulate="
            f"{config.accumulate} passes{among}. Use a multiple."
        )
    for name in ("warmup_steps", "max_length", "seed", "save_steps"):
        if getattr(config, name) < 0:
            yield f"{section}.{name}={getattr(config, name)}: use 0 or more."
    if not 0 < config.learning_rate < 1:
        yield f"{section}.learning_rate={config.learning_rate}: use a number between 0 and 1."
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            yield f"{section}.{name}={getattr(config, name)}: use 0 to below 1."
    if config.dtype not in DTYPES:
        yield f"{section}.dtype={config.dtype}: choose {', '.join(DTYPES)}."
    for name in config.trackers:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            yield f"{section}.trackers: {name} is none of {known}.{nearest(name, TRACKERS)}"
        elif importlib.util.find_spec(name) is None:
            yield f"{section}.trackers={name} is not installed. Install it, or leave it out."


def processes_of(config: Any) -> int:
    """Processes that share a batch."""
    return int(getattr(config, "processes", 1))


def arguments(config: Any, section: str, device: str, folder: Path) -> dict[str, Any]:
    """Settings common to TRL's SFTConfig and DPOConfig; nothing is reported or saved unless asked.

    Raises UserError when bfloat16 is asked for on a device that lacks it.
    """
    import torch

    able = device != "cpu" and torch.cuda.is_bf16_supported()
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and able)
    if half and not able:
        raise UserError(
            f"{section}.dtype=bfloat16 needs a GPU that has it. Use {section}.dtype=float32."
        )
    if "wandb" in config.trackers:
        os.environ.pop("WANDB_DISABLED", None)  # our own default, for when nobody asks for it
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.batch // (config.accumulate * processes_of(config)),
        "gradient_accumulation_steps": config.accumulate,
        "learning_rate": config.learning_rate,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup_steps,
        "seed": config.seed,
        "data_seed": config.seed,
        "max_steps": config.steps or -1,
        "gradient_checkpointing": config.gradient_checkpointing,
        "use_cpu": device == "cpu",
        "bf16": half,
        "fp16": False,
        "report_to": list(config.trackers) or "none",
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "push_to_hub": False,
    }


def one_gpu(settings: Any) -> Any:
    """TRL's settings, for one GPU however many there are.

    With more, transformers would take ``batch`` rows on each, so another machine would train
    another model, and TRL refuses to start.
    """
    # The attribute that n_gpu reads; reading n_gpu first makes sure that it is not set again.
    settings._n_gpu = min(settings.n_gpu, 1)
    return settings


@dataclass(frozen=True)
class Fitting:
    """Which rows can be trained on, and what becomes of the others."""

    kept: list[int]
    """Row numbers."""
    cut: int
    """Rows kept whose response the trainer will cut."""
    dropped: int
    """Rows whose prompt leaves no room for a response."""
    refused: Counter[str]
    """Rows that cannot be written with the chat template, by reason."""

    @property
    def reason(self) -> str:
        """Why most of those that are refused are."""
        return self.refused.most_common(1)[0][0] if self.refused else ""

    @property
    def others(self) -> str:
        """A sentence on the rows refused, for an error on those dropped."""
        if not self.refused:
            return ""
        return f" {some(self.refused.total(), 'other row')} cannot be encoded: {self.reason}."


def fitting(
    policy: Policy, rows: Sequence[tuple[Sequence[Message], Sequence[str]]], longest: int
) -> Fitting:
    """Look through rows of a prompt and its responses before a trainer does.

    Raises UserError when the chat template refuses every row.
    """
    kept, cut, dropped, refused = [], 0, 0, Counter[str]()
    for number, (prompt, responses) in enumerate(rows):
        try:
            encoded = [encode(policy.tokenizer, prompt, response) for response in responses]
        except TemplateRefuses as error:
            refused[str(error)] += 1
            continue
        if len(encoded[0][0]) < longest:
            kept.append(number)
            cut += max(len(before) + len(after) for before, after in encoded) > longest
        else:
            dropped += 1
    found = Fitting(kept, cut, dropped, refused)
    if rows and refused.total() == len(rows):
        raise UserError(
            f"sft.model has a chat template that cannot be trained on: {found.reason}. Use another "
            f"model, or give its folder a chat_template.jinja that takes these conversations and "
            f"adds nothing to the last turn."
        )
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' notes on names that will change: they are ours to follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def longest(policy: Policy, max_length: int) -> int:
    """Tokens of prompt and response that are trained on: the setting, within the context."""
    return min(max_length or policy.context, policy.context)


def anyone(trainer: Any, wants: bool) -> bool:
    """Whether any process of a training wants something, so that all of them do it."""
    import torch

    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return wants
    wishes = accelerator.gather(torch.tensor([int(wants)], device=accelerator.device))
    return bool(wishes.max())


DRAWS = "draws.safetensors"
"""A file in a checkpoint: where torch's draws stood before the order of the epoch under way. The
sampler of transformers draws it anew on resuming, from wherever they stand then."""
WHOLE = "whole"
"""A file in a checkpoint that is written last, the others' digests: without it, or where one is not
what was written, the checkpoint is not gone on from."""


def train(trainer: Any, bar: Any) -> list[dict[str, float]]:
    """Run a trainer; the log lines it made, each with its ``step``.

    Asked to stop, it ends after the update under way and leaves a checkpoint in its folder, from
    which the next try goes on to the same weights. Raises KeyboardInterrupt then.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import PrinterCallback, TrainerCallback

    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    drawn = load_file(checkpoint / DRAWS) if checkpoint else {}
    started: list[bool] = []

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.n = bar.initial = state.global_step  # updates of an earlier try took no time now
            bar.refresh()

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            if not started and drawn:
                torch.set_rng_state(drawn["epoch"])
            started.append(True)
            drawn["epoch"] = torch.get_rng_state()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.update(state.global_step - bar.n)
            if anyone(trainer, stopping.asked()) and state.global_step < state.max_steps:
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes a file of its own
            if not trainer.is_world_process_zero():
                return
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(drawn, folder / DRAWS)
            for path in folder.iterdir():
                disk.sync_file(path)  # or a loss of power leaves the last file and not the others
            disk.write_bytes(json.dumps(disk.folder_digests(str(folder))).encode(), folder / WHOLE)
            for older in folder.parent.glob("checkpoint-*"):
                if older != folder:  # after the new one is whole, so that a kill leaves either
                    shutil.rmtree(older)

    bar.reset(total=trainer.args.max_steps if trainer.args.max_steps > 0 else None)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress)
    cache = trainer.model.config.use_cache
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        stopping.check()
    trainer.model.config.use_cache = cache
    trainer.model.eval()
    return [line for line in trainer.state.log_history if "loss" in line]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a stopped training left, the latest whole one."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    for checkpoint in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        digests = disk.folder_digests(str(checkpoint))
        del digests[WHOLE]
        if (checkpoint / WHOLE).read_bytes() == json.dumps(digests).encode():
            return checkpoint
        logging.getLogger("bpo_data").warning(
            "%s is not what was written (a sha256 differs): it is not gone on from", checkpoint
        )
    return None


def log_columns(lines: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, list[float]]:
    """Log lines as columns: ``names`` maps our column to TRL's key."""
    steps: dict[str, list[float]] = {"step": [line["step"] for line in lines]}
    return steps | {ours: [float(line[theirs]) for line in lines] for ours, theirs in names.items()}
