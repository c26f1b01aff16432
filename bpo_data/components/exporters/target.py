"""The tokenizer that a trainer will use: what it makes of our texts, and what it would misread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_data import checkpoints
from bpo_data.components.exporters.rows import Answer, Asked, Tokens, said
from bpo_data.errors import UserError
from bpo_data.policy import (
    UNBOUNDED,
    TemplateRefuses,
    control,
    plain,
    plain_messages,
    policy_location,
    written,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("break", "keep", "leave_out")
"""What is done with control tokens typed in a text."""


@dataclass(frozen=True)
class Target:
    """A tokenizer with a chat template, and how many tokens its model holds."""

    tokenizer: PreTrainedTokenizerBase
    location: tuple[str, str | None]
    """Folder or hub name that it is loaded from, and revision."""
    name: str
    """What it is called."""
    context: int
    """Tokens; 0 where neither the model nor the tokenizer says."""

    def clean(self, asked: Asked, special: str) -> None:
        """Find control tokens typed in the texts; ``break`` cuts each, so that it stays text."""
        turns = plain_messages(self.tokenizer, asked.prompt)
        if [dict(turn) for turn in asked.prompt] != turns:
            asked.special.add(asked.prompt_id)
        broken = {name: plain(self.tokenizer, one.text) for name, one in asked.answers.items()}
        asked.special |= {name for name, text in broken.items() if text != asked.answers[name].text}
        if special == "break" and asked.special:
            asked.prompt = [  # as Message, in the order of its columns
                {"role": turn["role"], "content": turn["content"]} for turn in turns
            ]
            for name, text in broken.items():
                asked.answers[name].text = text

    def measure(self, batch: Sequence[Asked]) -> None:
        """Set ``tokens`` of every response, or ``refused``; each text is tokenised once."""
        heads: list[str] = []
        wholes: list[tuple[int, Answer, str]] = []
        for asked in batch:
            head = self.text(asked.prompt, asked.answers.values())
            if head is None:
                continue
            heads.append(head)
            for answer in asked.answers.values():
                whole = self.text([*asked.prompt, said(answer.text)], [answer])
                if whole is not None:
                    wholes.append((len(heads) - 1, answer, whole))
        before = self.ids(heads)
        after = self.ids([whole for _, _, whole in wholes])
        read = self.read(after)
        for (number, answer, whole), ids, back in zip(wholes, after, read, strict=True):
            answer.tokens = self.tokens(heads[number], before[number], answer, whole, ids, back)

    def text(self, turns: Sequence[Any], answers: Any) -> str | None:
        """The turns as the chat template writes them; None, and why on the answers, if it refuses.

        A prompt, which no assistant ends, is written up to where the assistant begins.
        """
        try:
            open_end = turns[-1]["role"] != "assistant"
            return str(
                written(self.tokenizer, list(turns), tokenize=False, add_generation_prompt=open_end)
            )
        except TemplateRefuses as error:
            for answer in answers:
                answer.refused = str(error)
            return None

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, as chat templates have them made."""
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return found

    def read(self, ids: list[list[int]]) -> list[str]:
        """The texts that token ids stand for."""
        found: list[str] = self.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        return found

    def tokens(
        self, head: str, before: list[int], answer: Answer, whole: str, ids: list[int], back: str
    ) -> Tokens:
        shared, known = common(before, ids), self.ends
        ends = [place for place in range(shared, len(ids)) if ids[place] in known]
        eos = self.tokenizer.eos_token
        return Tokens(
            prompt=len(before),
            shared=shared,
            whole=len(ids),
            closed=ends[-1] + 1 if ends else len(ids),
            ends=len(ends),
            eos=bool(eos) and whole.rstrip("\n").endswith(eos),
            prefix=whole.startswith(head),
            intact=answer.text in whole.removeprefix(head),
            readable="".join(back.split()) == "".join(whole.split()),
            ids=ids,
        )

    @property
    def ends(self) -> set[int | None]:
        """Ids that end a response."""
        return {self.tokenizer.eos_token_id, control(self.tokenizer).end} - {None}


def common(some: list[int], other: list[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    if other[: len(some)] == some:
        return len(some)
    return next(
        (n for n, (a, b) in enumerate(zip(some, other, strict=False)) if a != b),
        min(len(some), len(other)),
    )


def find_target(tokenizer: str, policy: Path) -> Target | str:
    """The tokenizer of this name, or of the policy where none is named; else why there is none.

    ``policy`` is the folder of the artifact. Raises UserError for a named one that cannot be used:
    what was asked for is not left out silently.
    """
    location = (tokenizer, None) if tokenizer else policy_location(policy)
    shown = tokenizer or ("the policy's" if Path(location[0]).is_dir() else location[0])
    found = load_target(location, shown)
    if isinstance(found, str) and tokenizer:
        raise UserError(
            f"export.tokenizer={tokenizer} cannot be used: {found}. Name a folder with a tokenizer "
            f"and its chat template, or a model of the hub."
        )
    return f"{shown} tokenizer cannot be used: {found}" if isinstance(found, str) else found


def load_target(location: tuple[str, str | None], shown: str = "") -> Target | str:
    """The tokenizer there, under the name ``shown``; or why it cannot be used."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    name, revision = location
    options = checkpoints.options(name, revision)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what it says of lengths is counted here
    try:
        found = AutoTokenizer.from_pretrained(name, **options)
        why = "" if found.chat_template else "it has no chat template"
    except Exception as error:  # noqa: BLE001  the libraries raise bare ones for strange files
        why = checkpoints.why_not(name, error)
    finally:
        logging.set_verbosity(level)
    return why or Target(found, location, shown, context(found, name, options))


def context(tokenizer: PreTrainedTokenizerBase, name: str, options: dict[str, Any]) -> int:
    """Tokens that the model of a tokenizer holds; 0 where nothing says so."""
    from transformers import AutoConfig

    length = None
    try:
        config = AutoConfig.from_pretrained(name, **options).get_text_config()
        length = getattr(config, "max_position_embeddings", None)
    except Exception:  # noqa: BLE001  a tokenizer on its own; bare ones for strange files
        pass
    length = length or tokenizer.model_max_length
    return int(length) if 0 < length < UNBOUNDED else 0
