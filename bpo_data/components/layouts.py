"""A record becomes a Row: recognise the layout it came in, read all of it or reject it."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from bpo_data.components.rows import Given, Row
from bpo_data.components.strict_json import Bad, Reason, clean, visible
from bpo_data.errors import nearest
from bpo_data.tables import Message

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
HUGE = 100_000
"""Characters of one text from which the row gets the notice ``huge_text``."""

IGNORE = "-"


@dataclass(frozen=True)
class Columns:
    """Which column of the source plays which part.

    Empty: the standard name, where the source has one. ``-``: none, even if a standard name is
    there. Anything else is the column's name, and a file without that column is refused.
    """

    id: str = ""
    prompt: str = ""
    response: str = ""
    score: str = ""
    author: str = ""
    chosen: str = ""
    rejected: str = ""
    topic: str = ""
    reference: str = ""
    split: str = ""
    system: str = ""


STANDARD = {
    "prompt": ("prompt", "instruction", "question", "conversations", "messages"),
    "response": ("responses", "completions", "response", "output", "completion", "answer"),
    "score": ("score", "rating", "overall_score"),
    "author": ("model", "author", "generator"),
    "reference": ("reference", "reference_answer", "gold_answer"),
}
PAIR_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
ITEM_TEXT = ("response", "text", "content", "completion", "output")
CONVERSATIONS = ("conversations", "messages")

_MISSING: Any = object()
_NUMBER = re.compile(
    r"\s*+[-+]?(\d++\.?\d*+|\.\d++|nan|inf(inity)?)(e[-+]?\d++)?\s*+", re.IGNORECASE
)
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_NUMBERED_RESPONSE = re.compile(r"(response|output|answer|completion)s?[_-]?(\d|a|b)$", re.I)
_NOTICES = {
    "special_tokens": re.compile(
        r"<\|[^|<>\n]{1,40}\|>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>|</?s>|<(bos|eos|pad|unk|mask)>|\[/?INST\]"
        r"|<</?SYS>>|<(start|end)_of_turn>|\[(PAD|UNK|MASK|CLS|SEP)\]|</?(think|tool_call)>"
    ),
    "role_marker": re.compile(r"\b(Human|Assistant):"),
    "bidi_control": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "control_characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}


def parts(keys: Collection[str], columns: Columns) -> dict[str, tuple[str, ...]]:
    """For every part the columns of a file that can play it, first choice first.

    Raises Bad ``missing_column`` if a mapped column, the prompt or half of a pair is in no row.
    """
    mapped = asdict(columns)
    found: dict[str, tuple[str, ...]] = {
        part: (name,) if name else tuple(n for n in STANDARD.get(part, (part,)) if n in keys)
        for part, name in mapped.items()
    }
    for part, name in mapped.items():
        if name == IGNORE:
            found[part] = ()
        elif name and keys and name not in keys:
            raise Bad("missing_column", _no_column(name, part, keys) + nearest(name, keys))
    if IGNORE in (columns.chosen, columns.rejected):
        found |= {"chosen": (), "rejected": ()}
    for half, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if found[half] and not found[other]:
            raise Bad("missing_column", _no_column(other, other, keys))
    if keys and not found["prompt"] and not found["chosen"]:
        raise Bad("missing_column", _no_column("prompt", "prompt", keys))
    return found


def _no_column(name: str, part: str, keys: Collection[str]) -> str:
    listed = ", ".join(keys) if len(keys) <= 30 else f"{len(keys)} names"
    return f"no column `{name}` (columns: {listed}). Name it with load.columns.{part}=NAME."


class Converter:
    """Turns the records of one file into rows; remembers the ids it has met."""

    def __init__(
        self, keys: Collection[str], columns: Columns, roles: Mapping[str, str], textual: bool
    ) -> None:
        self.columns, self.roles, self.textual = columns, roles, textual
        self.parts = parts(keys, columns)
        self.pair_scores = next(
            (two for two in PAIR_SCORES if two[0] in keys or two[1] in keys), None
        )
        self.prompt_of_id: dict[bytes, bytes] = {}
        self.given_of_id: set[bytes] = set()

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        """The row a record stands for. Raises Bad unless it can be read whole, in one way."""
        notices: list[str] = []
        chosen, rejected = self._get(record, "chosen"), self._get(record, "rejected")
        response = self._get(record, "response")
        answered = not _absent(response)
        paired = self.columns.response in ("", IGNORE) and (
            not (_absent(chosen) and _absent(rejected)) or (chosen is None and not answered)
        )
        if paired:
            self._refuse_ambiguous(record)
            prompt, given = self._pair(record, chosen, rejected, notices)
        elif answered or (response is None and not self._is_conversation(record)):
            prompt, given = self._responses(record, response, notices)
        else:
            prompt, given = self._prompt_alone(record, notices)
        prompt = self._with_system(record, prompt)
        self._check_id(record, prompt, given, paired)
        return Row(
            prompt,
            tuple(given),
            origin,
            topic=self._label(record, "topic"),
            reference=self._label(record, "reference"),
            split=self._split(record),
            notices=_with_text_notices(notices, prompt, given),
        )

    def _pair(
        self, record: Mapping[str, Any], chosen: Any, rejected: Any, notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        stated = self._get(record, "prompt")
        for name, value in (("chosen", chosen), ("rejected", rejected)):
            if value is _MISSING:
                raise Bad("missing_field", f"the row has no `{name}`")
            if value is None:
                raise Bad("null_response", f"`{name}` is null")
        native = all(str(side).startswith("\n\nHuman:") for side in (chosen, rejected))
        alone = _absent(stated) or stated == ""
        if native or (alone and (is_transcript(chosen) or is_transcript(rejected))):
            notices.append("hh_text")
            sides = [_last_turn(transcript(text)) for text in (chosen, rejected)]
        else:
            sides = [self._side(value, notices) for value in (chosen, rejected)]
        (history, better), (other_history, worse) = sides
        if history and other_history and (stated in (None, "") or self._is_conversation(record)):
            stated = _MISSING  # a chat column beside whole conversations holds one of the two
        if stated is not _MISSING:
            prompt = self._conversation(stated, notices, self._input(record, notices))
            if any(side and not _continues(side, prompt) for side, _ in sides):
                raise Bad(
                    "history_differs", "the prompt is not what chosen and rejected begin with"
                )
            prompt = history or other_history or prompt
        elif history and other_history:
            if "hh_text" not in notices:
                notices.append("layout:implicit_prompt")
            prompt = history
        else:
            raise Bad(
                "missing_field", "the row has no prompt, and its responses do not contain one"
            )
        if history and other_history and history != other_history:
            raise Bad("history_differs", "chosen and rejected do not share the same conversation")
        _check_prompt(prompt)
        return prompt, self._given_pair(record, better, worse)

    def _given_pair(self, record: Mapping[str, Any], better: str, worse: str) -> list[Given]:
        for text in (better, worse):
            _check_response(text)
        if better == worse:
            raise Bad("chosen_equals_rejected", "chosen and rejected are the same text")
        if better.strip() == worse.strip():
            raise Bad("chosen_equals_rejected_after_trim", "they differ in outer space alone")
        if _composed(better) == _composed(worse):
            raise Bad(
                "chosen_equals_rejected_after_nfc", "they differ in Unicode composition alone"
            )
        high, low = 1.0, 0.0
        if self.pair_scores:
            high, low = (self._number(record.get(n, _MISSING), n) for n in self.pair_scores)
            if high == low:
                raise Bad("score_tie", f"chosen and rejected both have the score {high:g}")
            if high < low:
                raise Bad("score_order_inverted", f"chosen has {high:g}, rejected {low:g}")
        return [Given(better, "chosen", high), Given(worse, "rejected", low)]

    def _side(self, value: Any, notices: list[str]) -> tuple[tuple[Message, ...], str]:
        """A response and the conversation before it, which is empty where the response is alone."""
        if isinstance(value, str):
            return (), clean(value)
        if isinstance(value, dict) and "from" in value and "value" in value:
            value = [value]
        if not isinstance(value, list):
            raise Bad("wrong_type", f"a response is {_kind(value)}, not text or a message list")
        if not value:
            raise Bad("empty_response", "a response is an empty list")
        return _last_turn(messages(value, self.roles, notices, "null_response"))

    def _responses(
        self, record: Mapping[str, Any], value: Any, notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        stated = self._get(record, "prompt")
        if stated is _MISSING:
            raise Bad("missing_field", "the row has no prompt")
        if value is None:
            raise Bad("null_response", "the response is null")
        named = [n for n in self.parts["response"] if record.get(n) is not None]
        lists = isinstance(value, list) and (
            named[0] in ("responses", "completions") or not _has_roles(value)
        )
        if len(named) > 1 and {"responses", "completions"} & set(named):
            raise Bad("unknown_layout", f"responses in several columns: {', '.join(named)}")
        prompt = self._conversation(stated, notices, self._input(record, notices))
        _check_prompt(prompt)
        if lists:
            ultra = any(isinstance(item, dict) and "overall_score" in item for item in value)
            notices.append("layout:ultrafeedback" if ultra else "layout:responses")
            return prompt, self._many(record, value)
        history, text = self._side(value, notices)
        if history and not _continues(history, prompt):
            raise Bad("history_differs", "the response does not begin with the prompt")
        _check_response(text)
        score = self._get(record, "score")
        number = self._number(score, "score") if self.parts["score"] else None
        return history or prompt, [Given(text, self._label(record, "author") or "", number)]

    def _many(self, record: Mapping[str, Any], items: Sequence[Any]) -> list[Given]:
        if not items:
            raise Bad("empty_response", "the list of responses is empty")
        beside = record.get("scores")
        scores = beside if isinstance(beside, list) else [None] * len(items)
        if len(scores) != len(items):
            raise Bad("wrong_field_count", f"{len(items)} responses but {len(scores)} scores")
        given = []
        for item, score in zip(items, scores, strict=True):
            author = None
            if isinstance(item, dict):
                author = _first(item, STANDARD["author"])
                inside = _first(item, STANDARD["score"])
                score, item = score if inside is None else inside, _first(item, ITEM_TEXT)
            if item is None:
                raise Bad("null_response", "one of the responses is null or has no text")
            if not isinstance(item, str):
                raise Bad("wrong_type", f"one of the responses is {_kind(item)}, not text")
            _check_response(clean(item))
            given.append((item, clean(author) if isinstance(author, str) else "", score))
        scored = any(score is not None for *_, score in given)
        return [
            Given(text, author, self._number(score, "score") if scored else None)
            for text, author, score in given
        ]

    def _prompt_alone(
        self, record: Mapping[str, Any], notices: list[str]
    ) -> tuple[tuple[Message, ...], list[Given]]:
        value = self._get(record, "prompt")
        if value is _MISSING:
            raise Bad("unknown_layout", f"no prompt and no pair among the keys {_keys(record)}")
        prompt = self._conversation(value, notices, self._input(record, notices))
        if self._is_conversation(record) and prompt and prompt[-1]["role"] == "assistant":
            notices.append("layout:conversation")
            history, text = _last_turn(prompt)
            _check_prompt(history)
            _check_response(text)
            return history, [Given(text, self._label(record, "author") or "")]
        for part in ("response", "chosen"):
            if self.parts[part]:
                raise Bad("missing_field", f"the row has no `{self.parts[part][0]}`; others do")
        if any(_NUMBERED_RESPONSE.match(key) for key in record):
            notices.append("responses_not_read")
        _check_prompt(prompt)
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
            raise Bad("wrong_type", f"the prompt is {_kind(value)}, not text or a message list")
        if more:
            raise Bad("unknown_layout", "`input` beside an instruction that is a message list")
        return messages(value, self.roles, notices, "empty_prompt")

    def _input(self, record: Mapping[str, Any], notices: list[str]) -> str:
        """Alpaca's ``input``, which is a part of the prompt beside ``instruction``."""
        more = record.get("input")
        if self.columns.prompt or self.parts["prompt"][:1] != ("instruction",) or not more:
            return ""
        if not isinstance(more, str):
            raise Bad("wrong_type", f"`input` is {_kind(more)}, not text")
        notices.append("layout:alpaca")
        return clean(more)

    def _with_system(
        self, record: Mapping[str, Any], prompt: tuple[Message, ...]
    ) -> tuple[Message, ...]:
        system = self._label(record, "system")
        if not system or not visible(system):
            return prompt
        if prompt[0]["role"] != "system":
            return ({"role": "system", "content": system}, *prompt)
        if prompt[0]["content"] != system:
            raise Bad("two_systems", "the system column and the prompt's system message differ")
        return prompt

    def _get(self, record: Mapping[str, Any], part: str) -> Any:
        """The value that plays this part: None where it is null, _MISSING where there is none."""
        there = [record[name] for name in self.parts[part] if name in record]
        return next((v for v in there if v is not None), None if there else _MISSING)

    def _label(self, record: Mapping[str, Any], part: str) -> str | None:
        value = self._get(record, part)
        if _absent(value) or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise Bad("wrong_type", f"`{part}` is {_kind(value)}, not text")
        return clean(str(value))

    def _split(self, record: Mapping[str, Any]) -> str | None:
        label = self._label(record, "split")
        if label in ("seed", "pool", "test"):
            return label
        if self.columns.split and label not in (None, "train"):
            raise Bad("unknown_split", f"the split is {label!a:.60}, not seed, pool, test or train")
        return None

    def _is_conversation(self, record: Mapping[str, Any]) -> bool:
        named = [name for name in self.parts["prompt"] if record.get(name) is not None]
        return not self.columns.prompt and named[:1] in (["conversations"], ["messages"])

    def _refuse_ambiguous(self, record: Mapping[str, Any]) -> None:
        also = [n for n in ("response", "responses", "completions") if n in self.parts["response"]]
        also = [name for name in also if record.get(name) is not None]
        if also and not (self.columns.chosen or self.columns.rejected):
            raise Bad(
                "unknown_layout",
                f"a pair and `{also[0]}` in one row (keys {_keys(record)}). "
                "Set load.columns.response or load.columns.chosen to `-` or a name.",
            )

    def _number(self, value: Any, name: str) -> float:
        if value is _MISSING:
            raise Bad("missing_field", f"the row has no `{name}`; others do")
        if value is None or (self.textual and value == ""):
            raise Bad("null_score", f"`{name}` is null")
        if self.textual and isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise Bad("score_not_a_number", f"`{name}` is {_kind(value)} {value!a:.60}")
        number = float(value)
        if not math.isfinite(number):
            raise Bad("score_not_finite", f"`{name}` is {number}")
        if abs(number) > 3.4028234e38:
            raise Bad("number_out_of_range", f"`{name}` is {number:g}, beyond float32")
        return number

    def _check_id(
        self,
        record: Mapping[str, Any],
        prompt: tuple[Message, ...],
        given: list[Given],
        paired: bool,
    ) -> None:
        """An id names one row, or, with a response to a row, one prompt."""
        if not self.parts["id"]:
            return
        label = self._label(record, "id")
        if label is None:
            raise Bad("missing_id", "the row has no id, or an empty one; others have one")
        name, whole = _digest(label), _digest(repr(prompt))
        one = not paired and len(given) == 1
        response = _digest(repr((label, given))) if one else name
        if (one and self.prompt_of_id.get(name, whole) != whole) or response in self.given_of_id:
            raise Bad("duplicate_id", f"the id {label!a:.80} stands on an earlier row too")
        self.prompt_of_id[name] = whole
        self.given_of_id |= {response, name} if not one else {response}


def messages(
    items: Sequence[Any], roles: Mapping[str, str], notices: list[str], null: Reason
) -> tuple[Message, ...]:
    """The turns of a message list, ShareGPT's from/value included; ``null`` names empty content."""
    return tuple(_message(item, roles, notices, null) for item in items)


def _message(item: Any, roles: Mapping[str, str], notices: list[str], null: Reason) -> Message:
    if not isinstance(item, dict):
        raise Bad("wrong_type", f"a message is {_kind(item)}, not an object")
    sharegpt = item.get("role") is None and item.get("from") is not None and "value" in item
    if sharegpt:
        notices.append("layout:sharegpt")
        roles = {**SHAREGPT_ROLES, **roles}
    elif "role" not in item:
        raise Bad("missing_role", "a message has no role")
    role = item["from" if sharegpt else "role"]
    role = roles.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise Bad("unknown_role", f"the role {role!a:.60} is none of {', '.join(ROLES)}")
    beside = [k for k in ("tool_calls", "function_call", "images", "audio", "video") if item.get(k)]
    if beside:
        raise Bad("unsupported_content", f"a message has `{beside[0]}`; only text is read")
    content = item.get("value" if sharegpt else "content")
    if content is None:
        raise Bad(null, "the content of a message is null or missing")
    if isinstance(content, list):
        notices.append("layout:content_parts")
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise Bad("wrong_type", f"the content of a message is {_kind(content)}, not text")
    return {"role": role, "content": clean(content)}


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else _kind(part)
        raise Bad("unsupported_content", f"a content part is {kind!a:.60}; only text is read")
    if not isinstance(part.get("text"), str):
        raise Bad("wrong_type", f"the text of a content part is {_kind(part.get('text'))}")
    return str(part["text"])


def is_transcript(value: Any) -> bool:
    """Whether this is a conversation in HH-RLHF's text layout."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def transcript(text: Any) -> tuple[Message, ...]:
    r"""The turns of ``\n\nHuman: ...\n\nAssistant: ...``, outer space of each turn removed.

    Raises Bad unless Human speaks first, Assistant last, and they take turns.
    """
    if not isinstance(text, str):
        raise Bad("wrong_type", f"a transcript is {_kind(text)}, not text")
    before, *turns = _HH_TURN.split("\n\n" + clean(text).lstrip())
    speakers = turns[::2]
    if before or len(speakers) % 2 or speakers != ["Human", "Assistant"] * (len(speakers) // 2):
        raise Bad("roles_do_not_alternate", "Human and Assistant do not take turns in a transcript")
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        {"role": names[speaker], "content": words.strip()}
        for speaker, words in zip(speakers, turns[1::2], strict=True)
    )


def _check_response(text: str) -> None:
    if not visible(text):
        raise Bad("empty_response", "a response has no visible text")


_MAY_FOLLOW = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _check_prompt(prompt: Sequence[Message]) -> None:
    names = [message["role"] for message in prompt]
    if "user" not in names:
        raise Bad("no_user_message", "the prompt has no user turn")
    if "system" in names[1:]:
        raise Bad("system_not_first", "a system message stands after the first place")
    if names[-1] == "assistant":
        raise Bad("prompt_ends_with_assistant", "the last turn of the prompt is the assistant's")
    for before, name in zip(["", *names], names, strict=False):
        if name not in _MAY_FOLLOW[before]:
            raise Bad("roles_do_not_alternate", f"{name} speaks after {before or 'nobody'}")
    if not visible(next(m["content"] for m in reversed(prompt) if m["role"] == "user")):
        raise Bad("empty_prompt", "the last user turn has no visible text")


def _last_turn(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    if turns[-1]["role"] != "assistant":
        raise Bad("roles_do_not_alternate", "a response does not end with the assistant's turn")
    return turns[:-1], turns[-1]["content"]


def _continues(history: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Whether a response's own conversation is the prompt; a one-turn prompt may be its last."""
    if tuple(history) == tuple(prompt):
        return True
    return len(prompt) == 1 and _composed(prompt[0]["content"]) == _composed(history[-1]["content"])


def _with_text_notices(
    notices: list[str], prompt: Sequence[Message], given: Sequence[Given]
) -> tuple[str, ...]:
    texts = [message["content"] for message in prompt] + [one.text for one in given]
    for name, pattern in _NOTICES.items():
        if any(pattern.search(text) for text in texts):
            notices.append(name)
    if any(len(text) > HUGE for text in texts):
        notices.append("huge_text")
    return tuple(dict.fromkeys(notices))


def _absent(value: Any) -> bool:
    return value is None or value is _MISSING


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _has_roles(items: Sequence[Any]) -> bool:
    return any(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no text")


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(list(record)[:20]) or "(none)"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
