"""LoRA adapters in place of the weights, and 4-bit weights under them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bpo_data import checkpoints
from bpo_data.errors import UserError
from bpo_data.policy import WAY_OUT, Policy, load_policy, policy_location

if TYPE_CHECKING:
    from bpo_data.artifacts import Draft

QUANTIZE = ("none", "4bit")


def problems(config: Any) -> Iterator[str]:
    """One line for each setting of ``train`` on adapters that cannot work."""
    if config.lora_rank < 0:
        yield f"train.lora_rank={config.lora_rank}: use 1 or more, or 0 for none."
    if config.lora_alpha < 0:
        yield f"train.lora_alpha={config.lora_alpha}: use 0 for twice the rank, or more."
    if not 0 <= config.lora_dropout < 1:
        yield f"train.lora_dropout={config.lora_dropout}: use 0 to below 1."
    if not config.lora_rank:
        for name, value in (
            ("lora_alpha", config.lora_alpha),
            ("lora_dropout", config.lora_dropout),
            ("lora_targets", config.lora_targets),
        ):
            if value:
                yield f"train.{name}={value} has no use without train.lora_rank."
    elif importlib.util.find_spec("peft") is None:
        yield (
            f"train.lora_rank={config.lora_rank} needs the package peft: pip install "
            f"-c constraints.txt 'bpo-data[lora]'."
        )
    if config.quantize not in QUANTIZE:
        yield f"train.quantize={config.quantize}: choose {' or '.join(QUANTIZE)}."
    elif config.quantize != "none" and not config.lora_rank:
        yield f"train.quantize={config.quantize} trains adapters: set train.lora_rank."


def settings(config: Any) -> Any:
    """peft's LoraConfig, None without adapters."""
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets or "all-linear",
        task_type="CAUSAL_LM",
    )


def load_in_4_bits(model: str, revision: str | None, device: str) -> Policy:
    """A policy with 4-bit weights (NF4, scales in 4 bits too). Raises UserError without a GPU."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        raise UserError("train.quantize=4bit needs a GPU. Use train.quantize=none.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "train.quantize=4bit needs the package bitsandbytes. Install it, or use "
            "train.quantize=none."
        )
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = load_policy(model, revision, "cpu", "float32")
    with checkpoints.loading(model, "sft.model", WAY_OUT):
        found = AutoModelForCausalLM.from_pretrained(
            model,
            **checkpoints.weights(model, revision),
            device_map={"": device},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        )
    return Policy(found, whole.tokenizer)


def merged(trainer: Any, policy: Policy, draft: Draft, device: str) -> Policy:
    """The policy with what adapters have learnt in its weights; as it is where there are none."""
    model = trainer.model
    if not hasattr(model, "merge_and_unload"):
        return policy
    if not getattr(model, "is_loaded_in_4bit", False):
        return Policy(model.merge_and_unload(), policy.tokenizer)
    from peft import PeftModel

    # Merged into 4 bits they would be rounded away: onto the weights as they were.
    folder = draft.resumable("adapter")
    model.save_pretrained(folder)
    whole, revision = policy_location(draft.inputs["policy"].folder)
    base = load_policy(whole, revision, device, "float32")
    return Policy(
        PeftModel.from_pretrained(base.model, folder).merge_and_unload(), policy.tokenizer
    )
