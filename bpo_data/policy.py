"""The policy: a causal language model with its tokenizer, and how text becomes its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.tables import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BREAK = "\u200b"
"""A space of no width: cuts a control token typed in a text without changing how it looks."""


@dataclass(frozen=True)
class Policy:
    """A model in eval mode and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """Tokens of prompt and response that the model can hold together."""
        return int(self.model.config.get_text_config().max_position_embeddings)


def load_policy(model: str, revision: str | None, device: str, dtype: str) -> Policy:
    """A policy from a folder or from the hub, in eval mode on ``device`` with ``dtype`` weights.

    Only safetensors weights are read and no code of the checkpoint is run. Raises UserError, one
    line naming sft.model, when there is no such model, its weights are pickled, or its tokenizer
    has no chat template.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_progress()
    check_location(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        loaded = AutoModelForCausalLM.from_pretrained(
            model, use_safetensors=True, dtype=dtype, **options
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"sft.model={model} cannot be loaded: {reason} Check the name and the network, or "
            f"name a folder with config.json, tokenizer and safetensors weights."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"sft.model={model}: its tokenizer has no chat template. Use an instruction-tuned "
            f"model, or add chat_template.jinja to its folder."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(loaded.to(device).eval(), tokenizer)


def quiet_progress() -> None:
    """No bars of transformers for each weight file; stages have their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def check_location(model: str) -> None:
    """Raises UserError when a folder is missing, holds no model, or a pickled one."""
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise UserError(f"sft.model={model} is no folder. Name one, or a model of the hub.")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"sft.model={model} has no config.json. Name a saved transformers model.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        found = "only pickled weights, which can run code" if pickled else "no weights"
        raise UserError(
            f"sft.model={model} has {found}. Save it again with "
            f"save_pretrained(..., safe_serialization=True)."
        )


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a normal transformers folder: safetensors, tokenizer, chat template; no pickles.

    The bytes depend on weights and tokenizer alone, not on where they came from.
    """
    quiet_progress()
    policy.model.config._name_or_path = ""
    for origin in ("is_local", "local_files_only", "name_or_path"):
        policy.tokenizer.init_kwargs.pop(origin, None)
    policy.model.save_pretrained(folder, max_shard_size="2GB")
    policy.tokenizer.save_pretrained(folder)


def policy_location(folder: Path) -> tuple[str, str | None]:
    """(folder or hub name, revision) of the policy that an ``sft`` or ``train`` artifact holds."""
    pointer = folder / "model.json"
    if pointer.is_file():
        target = json.loads(pointer.read_text(encoding="utf-8"))
        return target["model"], target["revision"] or None
    return str(folder / "model"), None


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with every control token typed in it cut by a zero-width space, so it stays text.

    ``<|end|>`` written by a user becomes ``<``, U+200B, ``|end|>``: it looks the same and cannot
    end the turn. Text without control tokens comes back unchanged.
    """
    control = control_tokens(tokenizer)
    while found := [token for token in control if token in text]:
        # Tokens may overlap: what is left of one can be another, so look again.
        for token in found:
            text = text.replace(token, token[0] + BREAK + token[1:])
    return text


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Strings a tokenizer takes out of a text before it looks at words, in a fixed order.

    Runs of spaces and single letters, which some tokenizers also add, are text and left out.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    names = added | set(tokenizer.all_special_tokens)
    return tuple(sorted(name for name in names if len(name.strip()) > 1))


def plain_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]
) -> list[dict[str, str]]:
    """The messages with ``plain`` contents, as chat templates and trainers take them."""
    return [
        {"role": turn["role"], "content": plain(tokenizer, turn["content"])} for turn in messages
    ]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt up to where the assistant begins to write."""
    turns = plain_messages(tokenizer, prompt)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return list(ids)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids), the completion with its end token: as TRL's trainers cut them.

    Raises ValueError when the template does not write the prompt as the beginning of the whole.
    """
    turns = plain_messages(tokenizer, prompt)
    answer = {"role": "assistant", "content": plain(tokenizer, response)}
    before = prompt_tokens(tokenizer, prompt)
    whole = list(tokenizer.apply_chat_template([*turns, answer], return_dict=False))
    if whole[: len(before)] != before:
        raise ValueError(
            "the chat template does not write the prompt as the beginning of prompt and response"
        )
    return before, whole[len(before) :]
