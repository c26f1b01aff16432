"""The policy: a causal language model with its tokenizer, and how text becomes its tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bpo_data import checkpoints
from bpo_data.artifacts import MANIFEST, Artifact
from bpo_data.errors import UserError
from bpo_data.shelf import read_manifest
from bpo_data.tables import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BREAK = "\u200b"
"""A space of no width: cuts a control token typed in a text without changing how it looks."""
WAY_OUT = (
    "Check the name and the network, or name a folder with config.json, tokenizer and safetensors "
    "weights."
)
UNBOUNDED = 10**9
"""A tokenizer says that it knows no limit with a length far above this."""


class TemplateRefuses(ValueError):
    """A chat template does not take a conversation, or not so that a response can be told apart."""


@dataclass(frozen=True)
class Policy:
    """A model in eval mode and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """Tokens of prompt and response that the model can hold together.

        Models without a table of positions (Bloom, MPT) go by their tokenizer. Raises ValueError
        when that has no limit either.
        """
        config = self.model.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        if not 0 < length < UNBOUNDED:
            raise ValueError("neither the model nor its tokenizer says how many tokens it can hold")
        return int(length)


def load_policy(
    model: str, revision: str | None, device: str, dtype: str, setting: str = "sft.model"
) -> Policy:
    """A policy from a folder or from the hub, in eval mode on ``device`` with ``dtype`` weights.

    On the device ``spread`` its blocks are divided among all GPUs.

    Only safetensors weights are read and no code of the checkpoint is run, unless it is trusted
    by name (``checkpoints``). Raises UserError, one line naming the setting, when there is no such
    model, its weights are pickled, its length is unknown, or its tokenizer has no chat template or
    no token to end or to pad with.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_progress()
    check_location(model, setting)
    place = {"device_map": "auto"} if device == "spread" else {}
    with checkpoints.loading(model, setting, WAY_OUT):
        tokenizer = AutoTokenizer.from_pretrained(model, **checkpoints.options(model, revision))
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, **checkpoints.weights(model, revision), **place
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"{setting}={model}: its tokenizer has no chat template. Use an instruction-tuned "
            f"model, or add chat_template.jinja to its folder."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{setting}={model}: its tokenizer has neither an end token nor a padding token. "
                f"Name them as eos_token and pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    loaded = loaded.eval() if place else loaded.eval().to(device)
    policy = Policy(loaded, tokenizer)
    try:
        _ = policy.context
    except ValueError as error:
        raise UserError(
            f"{setting}={model}: {error}. Set model_max_length in its tokenizer_config.json."
        ) from error
    return policy


def quiet_progress() -> None:
    """No bars of transformers for each weight file; stages have their own. What it logs goes where
    our lines go."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()


def check_location(model: str, setting: str = "sft.model") -> None:
    """Raises UserError when a folder is missing, holds no model, or a pickled one."""
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise UserError(f"{setting}={model} is no folder. Name one, or a model of the hub.")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{setting}={model} has no config.json. Name a saved transformers model.")
    checkpoints.check_folder(model, setting)
    if not any(folder.glob("*.safetensors")) and not checkpoints.trusted(model):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        found = "only pickled weights, which can run code" if pickled else "no weights"
        raise UserError(
            f"{setting}={model} has {found}. Save it again with "
            f"save_pretrained(..., safe_serialization=True)."
        )


def check_model(model: str, revision: str | None) -> None:
    """Raises UserError when a model to be used later is not there, without reading its weights."""
    from transformers import AutoConfig

    check_location(model)
    with checkpoints.loading(model, "sft.model", WAY_OUT):
        AutoConfig.from_pretrained(model, **checkpoints.options(model, revision))


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a normal transformers folder: safetensors, tokenizer, chat template; no pickles.

    The bytes depend on weights and tokenizer alone, not on where they came from. The end tokens
    go into generation_config.json, so that any other program stops where we do.
    """
    quiet_progress()
    if ends := end_tokens(policy):
        policy.model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    policy.model.config._name_or_path = ""
    for origin in ("is_local", "local_files_only", "name_or_path"):
        policy.tokenizer.init_kwargs.pop(origin, None)
    policy.model.save_pretrained(folder, max_shard_size="2GB")
    policy.tokenizer.save_pretrained(folder)


def policy_location(folder: Path) -> tuple[str, str | None]:
    """(folder or hub name, revision) of the policy that an ``sft`` or ``train`` artifact holds.

    Raises UserError for a pointer to a model that is none, and for a file that has changed since.
    """
    if (folder / MANIFEST).is_file():
        check_written(folder)
    pointer = folder / "model.json"
    if pointer.is_file():
        try:
            target = json.loads(pointer.read_text(encoding="utf-8"))
            model, revision = target["model"], target["revision"] or None
            if not isinstance(model, str) or not isinstance(revision, str | None):
                raise TypeError("it names no model")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"{pointer} points to no model: {error}. Remove {folder} and make it again."
            ) from error
        return model, revision
    return str(folder / "model"), None


@cache
def check_written(folder: Path) -> None:
    """Compare the model of an artifact with its manifest, once in a process: models are large."""
    artifact = Artifact(folder, read_manifest(folder))
    for name in artifact.manifest["files"]:
        if name.startswith("model"):
            artifact.checked(name)


ROUND = "round.json"
"""Names the online round that a policy was trained in; beside the model of a ``train`` artifact."""


def round_of(folder: Path) -> int:
    """How many rounds of training a policy's artifact has behind it; the SFT policy has none."""
    path = folder / ROUND
    return int(json.loads(path.read_text(encoding="utf-8"))["round"]) if path.is_file() else 0


def write_round(folder: Path, number: int) -> None:
    """Write down the round, so that what it samples can draw other numbers than the last one."""
    (folder / ROUND).write_text(json.dumps({"round": number}), encoding="utf-8")


def copy_round(source: Path, folder: Path) -> None:
    """A policy made of another counts as trained in the same round."""
    write_round(folder, round_of(source))


def end_tokens(policy: Policy) -> list[int]:
    """Ids that end a response: those of the tokenizer, of the model and of the chat template."""
    named = policy.model.generation_config.eos_token_id
    several = named if isinstance(named, list) else [named]
    own = {policy.tokenizer.eos_token_id, control(policy.tokenizer).end}
    return sorted({*several, *own} - {None})


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with every control token typed in it cut by a zero-width space, so it stays text.

    ``<|end|>`` written by a user becomes ``<``, U+200B, ``|end|>``: it looks the same and cannot
    end the turn. Text without control tokens comes back unchanged, and so do added tokens that
    control nothing, such as ``<think>``.
    """
    found = control(tokenizer)
    # Every place where one begins is cut, so that of tokens that overlap none is left.
    cuts = [
        place.end()
        for place in found.begin.finditer(text)
        if any(text[place.start() : place.start() + n] in found.names for n in found.lengths)
    ]
    return BREAK.join(text[a:b] for a, b in pairwise([0, *cuts, len(text)])) if cuts else text


@dataclass(frozen=True)
class Control:
    """The tokens that steer a model: special ones, and those a chat template marks turns with."""

    names: frozenset[str]
    begin: re.Pattern[str]
    """Matches the first letter of any name."""
    lengths: tuple[int, ...]
    """The lengths that names have, in characters."""
    end: int | None
    """Id of the token that the chat template writes after a response, where it writes one."""


KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, Control]] = WeakKeyDictionary()


def control(tokenizer: PreTrainedTokenizerBase) -> Control:
    """What steers the model of this tokenizer, read anew when tokens or template have changed."""
    state = (len(tokenizer), tokenizer.chat_template)
    if tokenizer not in KNOWN or KNOWN[tokenizer][0] != state:
        KNOWN[tokenizer] = state, read_control(tokenizer)
    return KNOWN[tokenizer][1]


def read_control(tokenizer: PreTrainedTokenizerBase) -> Control:
    """Special tokens and turn markers; other added tokens are text, such as ``<think>``."""
    # Runs of spaces, single letters and our own BREAK are text, even where a tokenizer adds them.
    added = {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.replace(BREAK, " ").strip()) > 1
    }

    def markers(parts: list[str]) -> list[int]:
        ids = tokenizer("".join(parts), add_special_tokens=False)["input_ids"]
        return [number for number in ids if number in added]

    system, turns = (
        around(tokenizer, "system", "user"),
        around(tokenizer, "user", "assistant", "user"),
    )
    ends = markers(around(tokenizer, "user", "assistant")[-1:])[:1]
    marking = {*markers(system[:1])[-1:], *markers(turns[1:-1]), *ends}
    special = set(tokenizer.all_special_tokens)
    names = {
        token.content
        for number, token in added.items()
        if token.special or token.content in special or number in marking
    }
    first = "".join(re.escape(letter) for letter in sorted({name[0] for name in names}))
    lengths = tuple(sorted({len(name) for name in names}))
    return Control(
        frozenset(names),
        re.compile(f"[{first}]" if first else "(?!)"),
        lengths,
        next(iter(ends), None),
    )


def around(tokenizer: PreTrainedTokenizerBase, *roles: str) -> list[str]:
    """What the chat template writes before, between and after turns; nothing if it refuses them."""
    words = [f"probe{number}word" for number in range(len(roles))]
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        parts = re.split("|".join(words), written(tokenizer, turns, tokenize=False))
    except ValueError:
        return []
    return parts if len(parts) == len(words) + 1 else []


def written(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> Any:
    """Turns as the chat template writes them. Raises TemplateRefuses when it does not take them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, return_dict=False, **options)
    except TemplateError as error:
        words = " ".join(str(error).split())[:200]
        raise TemplateRefuses(f"the chat template refuses a conversation: {words}") from error


def plain_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]
) -> list[dict[str, str]]:
    """The messages with ``plain`` contents, as chat templates and trainers take them."""
    return [
        {"role": turn["role"], "content": plain(tokenizer, turn["content"])} for turn in messages
    ]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt up to where the assistant begins to write.

    Raises TemplateRefuses when the chat template does not take the prompt.
    """
    turns = plain_messages(tokenizer, prompt)
    return list(written(tokenizer, turns, add_generation_prompt=True))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids), the completion with its end token: as TRL's trainers cut them.

    Raises TemplateRefuses when the chat template does not take the turns, or does not write the
    prompt as the beginning of the whole: some tokenizers join a first newline of the response to
    the prompt's last. A template that writes today's date gives other tokens tomorrow.
    """
    turns = plain_messages(tokenizer, prompt)
    answer = {"role": "assistant", "content": plain(tokenizer, response)}
    before = prompt_tokens(tokenizer, prompt)
    whole = list(written(tokenizer, [*turns, answer]))
    if whole[: len(before)] != before:
        raise TemplateRefuses(
            "the chat template does not write the prompt as the beginning of prompt and response"
        )
    return before, whole[len(before) :]
