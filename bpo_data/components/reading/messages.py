"""Conversations: message lists, ShareGPT turns and HH-RLHF transcripts, and what a prompt is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bpo_data.components.reading.faults import Bad, Reason
from bpo_data.components.reading.text import clean, kind_of, visible
from bpo_data.tables import Message, same_text

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_MAY_FOLLOW = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def messages(
    items: Sequence[Any], roles: Mapping[str, str], notices: list[str], null: Reason
) -> tuple[Message, ...]:
    """The turns of a message list, ShareGPT's from/value included; ``null`` names empty content."""
    return tuple(_message(item, roles, notices, null) for item in items)


def _message(item: Any, roles: Mapping[str, str], notices: list[str], null: Reason) -> Message:
    if not isinstance(item, dict):
        raise Bad("wrong_type", f"a message is {kind_of(item)}, not an object")
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
        raise Bad("wrong_type", f"the content of a message is {kind_of(content)}, not text")
    return {"role": role, "content": clean(content)}


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        raise Bad("unsupported_content", f"a content part is {kind!a:.60}; only text is read")
    if not isinstance(part.get("text"), str):
        raise Bad("wrong_type", f"the text of a content part is {kind_of(part.get('text'))}")
    return str(part["text"])


def is_transcript(value: Any) -> bool:
    """Whether this is a conversation in HH-RLHF's text layout."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def transcript(text: Any) -> tuple[Message, ...]:
    r"""The turns of ``\n\nHuman: ...\n\nAssistant: ...``, outer space of each turn removed.

    Raises Bad unless Human speaks first, Assistant last, and they take turns.
    """
    if not isinstance(text, str):
        raise Bad("wrong_type", f"a transcript is {kind_of(text)}, not text")
    before, *turns = _HH_TURN.split("\n\n" + clean(text).lstrip())
    speakers = turns[::2]
    if before or len(speakers) % 2 or speakers != ["Human", "Assistant"] * (len(speakers) // 2):
        raise Bad("roles_do_not_alternate", "Human and Assistant do not take turns in a transcript")
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        {"role": names[speaker], "content": words.strip()}
        for speaker, words in zip(speakers, turns[1::2], strict=True)
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Raises Bad unless the speakers take turns and the last user turn says something."""
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


def last_turn(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """The conversation before the last answer, and that answer. Raises Bad if there is none."""
    if turns[-1]["role"] != "assistant":
        raise Bad("roles_do_not_alternate", "a response does not end with the assistant's turn")
    return turns[:-1], turns[-1]["content"]


def continues(history: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Whether a response's own conversation is the prompt; a one-turn prompt may be its last."""
    if tuple(history) == tuple(prompt):
        return True
    return len(prompt) == 1 and same_text(prompt[0]["content"]) == same_text(history[-1]["content"])


def has_roles(items: Sequence[Any]) -> bool:
    """Whether this list holds turns of a conversation and not responses."""
    return any(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)
