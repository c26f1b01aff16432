"""A record becomes a Row: recognise the layout it came in, read all of it or reject it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bpo_data.components.reading.columns import IGNORE, MISSING, Cells, Columns, absent
from bpo_data.components.reading.faults import Bad
from bpo_data.components.reading.ids import Ids
from bpo_data.components.reading.messages import (
    check_prompt,
    continues,
    has_roles,
    is_transcript,
    last_turn,
    messages,
    transcript,
)
from bpo_data.components.reading.responses import check_response, given_list, given_pair
from bpo_data.components.reading.text import clean, kind_of, visible
from bpo_data.components.reading.text import notices as text_notices
from bpo_data.components.rows import Given, Row
from bpo_data.tables import Message

_NUMBERED_RESPONSE = re.compile(r"(response|output|answer|completion)s?[_-]?(\d|a|b)$", re.I)


class Converter:
    """Turns the records of one file into rows; remembers the ids it has met, in a folder for
    ``scratch`` if they are many."""

    def __init__(
        self,
        keys: Collection[str],
        columns: Columns,
        roles: Mapping[str, str],
        textual: bool,
        scratch: Path | None = None,
    ) -> None:
        self.cells = Cells(keys, columns, textual)
        self.roles = roles
        self.ids = Ids(scratch)

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        """The row a record stands for. Raises Bad unless it can be read whole, in one way."""
        notices: list[str] = []
        chosen, rejected = self.cells.get(record, "chosen"), self.cells.get(record, "rejected")
        response = self.cells.get(record, "response")
        answered = not absent(response)
        paired = self.cells.columns.response in ("", IGNORE) and (
            not (absent(chosen) and absent(rejected)) or (chosen is None and not answered)
        )
        if paired:
            self._refuse_ambiguous(record)
            prompt, given = self._pair(record, chosen, rejected, notices)
        elif answered or (response is None and not self.cells.is_conversation(record)):
            prompt, given = self._responses(record, response, notices)
        else:
            prompt, given = self._prompt_alone(record, notices)
        if self.cells.parts["criteria"] and len(given) > 1:
            raise Bad("unknown_layout", "load.columns.criteria wants one response in each row")
        prompt = self._with_system(record, prompt)
        if self.cells.parts["id"]:
            label = self.cells.label(record, "id")
            self.ids.add(label, prompt, given, one=not paired and len(given) == 1)
        notices.extend(text_notices([m["content"] for m in prompt] + [one.text for one in given]))
        return Row(
            prompt,
            tuple(given),
            origin,
            topic=self.cells.label(record, "topic"),
            reference=self.cells.label(record, "reference"),
            split=self.cells.split(record),
            notices=tuple(dict.fromkeys(notices)),
        )

    def _pair(
        self, record: Mapping[str, Any], chosen: Any, rejected: Any, notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        stated = self.cells.get(record, "prompt")
        for name, value in (("chosen", chosen), ("rejected", rejected)):
            if value is MISSING:
                raise Bad("missing_field", f"the row has no `{name}`")
            if value is None:
                raise Bad("null_response", f"`{name}` is null")
        (history, better), (other, worse) = self._sides(stated, chosen, rejected, notices)
        prompt = self._shared(record, stated, history, other, notices)
        check_prompt(prompt)
        return prompt, given_pair(self.cells, record, better, worse)

    def _sides(
        self, stated: Any, chosen: Any, rejected: Any, notices: list[str]
    ) -> list[tuple[tuple[Message, ...], str]]:
        native = all(str(side).startswith("\n\nHuman:") for side in (chosen, rejected))
        alone = absent(stated) or stated == ""
        if native or (alone and (is_transcript(chosen) or is_transcript(rejected))):
            notices.append("hh_text")
            return [last_turn(transcript(text)) for text in (chosen, rejected)]
        return [self._side(value, notices) for value in (chosen, rejected)]

    def _side(self, value: Any, notices: list[str]) -> tuple[tuple[Message, ...], str]:
        """A response and the conversation before it, which is empty where the response is alone."""
        if isinstance(value, str):
            return (), clean(value)
        if isinstance(value, dict) and "from" in value and "value" in value:
            value = [value]
        if not isinstance(value, list):
            raise Bad("wrong_type", f"a response is {kind_of(value)}, not text or a message list")
        if not value:
            raise Bad("empty_response", "a response is an empty list")
        return last_turn(messages(value, self.roles, notices, "null_response"))

    def _shared(
        self,
        record: Mapping[str, Any],
        stated: Any,
        history: tuple[Message, ...],
        other: tuple[Message, ...],
        notices: list[str],
    ) -> tuple[Message, ...]:
        """The prompt of a pair: the stated one, or what both responses begin with."""
        both = bool(history and other)
        if both and (stated in (None, "") or self.cells.is_conversation(record)):
            stated = MISSING  # a chat column beside whole conversations holds one of the two
        if stated is not MISSING:
            prompt = self._conversation(stated, notices, self._input(record, notices))
            if any(side and not continues(side, prompt) for side in (history, other)):
                raise Bad(
                    "history_differs", "the prompt is not what chosen and rejected begin with"
                )
            prompt = history or other or prompt
        elif both:
            if "hh_text" not in notices:
                notices.append("layout:implicit_prompt")
            prompt = history
        else:
            raise Bad(
                "missing_field", "the row has no prompt, and its responses do not contain one"
            )
        if both and history != other:
            raise Bad("history_differs", "chosen and rejected do not share the same conversation")
        return prompt

    def _responses(
        self, record: Mapping[str, Any], value: Any, notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        stated = self.cells.get(record, "prompt")
        if stated is MISSING:
            raise Bad("missing_field", "the row has no prompt")
        if value is None:
            raise Bad("null_response", "the response is null")
        named = self.cells.named(record, "response")
        lists = isinstance(value, list) and (
            named[0] in ("responses", "completions") or not has_roles(value)
        )
        if len(named) > 1 and {"responses", "completions"} & set(named):
            raise Bad("unknown_layout", f"responses in several columns: {', '.join(named)}")
        prompt = self._conversation(stated, notices, self._input(record, notices))
        check_prompt(prompt)
        if lists:
            ultra = any(isinstance(item, dict) and "overall_score" in item for item in value)
            notices.append("layout:ultrafeedback" if ultra else "layout:responses")
            return prompt, given_list(self.cells, record, value, notices)
        history, text = self._side(value, notices)
        if history and not continues(history, prompt):
            raise Bad("history_differs", "the response does not begin with the prompt")
        check_response(text)
        score = self.cells.get(record, "score")
        number = self.cells.number(score, "score") if self.cells.parts["score"] else None
        author = self.cells.label(record, "author") or ""
        return history or prompt, [Given(text, author, number, self.cells.criteria(record))]

    def _prompt_alone(
        self, record: Mapping[str, Any], notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        value = self.cells.get(record, "prompt")
        if value is MISSING:
            raise Bad("unknown_layout", f"no prompt and no pair among the keys {_keys(record)}")
        prompt = self._conversation(value, notices, self._input(record, notices))
        if self.cells.is_conversation(record) and prompt and prompt[-1]["role"] == "assistant":
            notices.append("layout:conversation")
            history, text = last_turn(prompt)
            check_prompt(history)
            check_response(text)
            return history, [Given(text, self.cells.label(record, "author") or "")]
        if elsewhere := self.cells.parts["response"] or self.cells.parts["chosen"]:
            raise Bad("missing_field", f"the row has no `{elsewhere[0]}`; others do")
        if any(_NUMBERED_RESPONSE.match(key) for key in record):
            notices.append("responses_not_read")
        check_prompt(prompt)
        return prompt, []

    def _conversation(self, value: Any, notices: list[str], more: str = "") -> tuple[Message, ...]:
        if value is None or value == [] or value == "":
            raise Bad("empty_prompt", "the prompt is null or empty")
        if isinstance(value, str):
            text = clean(value)
            if is_transcript(text) and text.rstrip().endswith("\n\nAssistant:"):
                notices.append("hh_text")
                return transcript(text)[:-1]
            return ({"role": "user", "content": f"{text}\n\n{more}" if more else text},)
        if not isinstance(value, list):
            raise Bad("wrong_type", f"the prompt is {kind_of(value)}, not text or a message list")
        if more:
            raise Bad("unknown_layout", "`input` beside an instruction that is a message list")
        return messages(value, self.roles, notices, "empty_prompt")

    def _input(self, record: Mapping[str, Any], notices: list[str]) -> str:
        """Alpaca's ``input``, which is a part of the prompt beside ``instruction``."""
        more = record.get("input")
        first = self.cells.parts["prompt"][:1]
        if self.cells.columns.prompt or first != ("instruction",) or not more:
            return ""
        if not isinstance(more, str):
            raise Bad("wrong_type", f"`input` is {kind_of(more)}, not text")
        notices.append("layout:alpaca")
        return clean(more)

    def _with_system(
        self, record: Mapping[str, Any], prompt: tuple[Message, ...]
    ) -> tuple[Message, ...]:
        system = self.cells.label(record, "system")
        if not system or not visible(system):
            return prompt
        if prompt[0]["role"] != "system":
            return ({"role": "system", "content": system}, *prompt)
        if prompt[0]["content"] != system:
            raise Bad("two_systems", "the system column and the prompt's system message differ")
        return prompt

    def _refuse_ambiguous(self, record: Mapping[str, Any]) -> None:
        there = self.cells.named(record, "response")
        also = [name for name in ("response", "responses", "completions") if name in there]
        if also and not (self.cells.columns.chosen or self.cells.columns.rejected):
            raise Bad(
                "unknown_layout",
                f"a pair and `{also[0]}` in one row (keys {_keys(record)}). "
                "Set load.columns.response or load.columns.chosen to `-` or a name.",
            )


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(list(record)[:20]) or "(none)"
