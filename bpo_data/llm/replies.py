"""What came of a request: one of a closed set of states, and the words that came with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

STATES = (
    "ok",
    "truncated",
    "empty",
    "refused",
    "filtered",
    "malformed",
    "http_error",
    "budget_stop",
    "too_long",
)
"""The closed set: every request ends in exactly one, so counts by state add up to the requests."""

ANSWERED = frozenset({"ok", "truncated", "empty", "refused", "filtered"})
"""States in which the server has spoken: kept in the store, never asked (or paid) again."""

BROKEN_FINISHES = frozenset({"error", "abort"})
"""``finish_reason``s of servers that gave up half-way: what they sent is no answer."""


@dataclass(frozen=True)
class Reply:
    """What came of one request."""

    state: str
    """One of ``STATES``."""

    text: str = ""
    """The model's words, verbatim (of a refusal, the refusal); empty when there are none."""

    finish: str = ""
    """``finish_reason`` as the server gave it."""

    usage_prompt: int | None = None
    """Tokens, as the server counts them; None when it does not say."""

    usage_completion: int | None = None
    """Tokens, reasoning included; None when the server does not say."""

    attempts: int = 1
    """Times it was sent before this came of it."""

    detail: str = ""
    """Why the state is not ``ok``, for a human reader; the server's own words where it has any."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"{self.state!r} is not one of the states {', '.join(STATES)}")


def read_completion(body: str, attempts: int) -> Reply:
    """The reply in the body of a 200 answer to a chat request, whatever that body is."""
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return malformed(f"not JSON: {shown(body)}", attempts)
    choices = whole.get("choices") if isinstance(whole, dict) else None
    if not isinstance(choices, list) or not choices:
        return malformed(f"no choices: {shown(body)}", attempts)
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice["message"] if isinstance(choice.get("message"), dict) else {"content": False}
    finish = clean(choice.get("finish_reason"))
    text = text_of(message.get("content"))
    if text is None or finish in BROKEN_FINISHES:
        return malformed(f"no message: {shown(body)}", attempts)
    state, text, detail = judged(text, finish, message)
    usage = whole["usage"] if isinstance(whole.get("usage"), dict) else {}
    return Reply(
        state,
        text,
        finish,
        tokens(usage.get("prompt_tokens")),
        tokens(usage.get("completion_tokens")),
        attempts,
        detail,
    )


def judged(text: str, finish: str, message: dict[str, Any]) -> tuple[str, str, str]:
    """State, text and detail of a well-formed message."""
    refusal = clean(message.get("refusal"))
    if refusal:
        return "refused", refusal, "the model refused"
    if finish == "content_filter":
        return "filtered", text, "the server's filter stopped the answer"
    if finish == "length":
        return "truncated", text, "max_tokens was reached" + reasoned(text, message)
    if not text.strip():
        return "empty", text, "the answer has no text" + reasoned(text, message)
    return "ok", text, ""


def reasoned(text: str, message: dict[str, Any]) -> str:
    """What to add to the detail when there is reasoning and no answer, else ``""``."""
    thoughts = clean(message.get("reasoning")) or clean(message.get("reasoning_content"))
    if text.strip() or not thoughts:
        return ""
    return f"; {len(thoughts):,} characters of reasoning came instead: raise max_tokens"


def text_of(content: Any) -> str | None:
    """A message's content as one text: null is ``""``, parts are joined; None for anything else."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return clean(content) if content is None or isinstance(content, str) else None


def clean(text: Any) -> str:
    """``text`` if it is a string, else ``""``; half an emoji (a lone surrogate) becomes U+FFFD.

    Servers that cut by tokens send such halves, and neither SQLite nor Arrow can hold them.
    """
    if not isinstance(text, str):
        return ""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tokens(count: Any) -> int | None:
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def shown(body: str, limit: int = 300) -> str:
    """The first characters of what a server sent, on one line."""
    line = " ".join(clean(body).split())
    return line if len(line) <= limit else line[:limit] + "..."


def malformed(detail: str, attempts: int) -> Reply:
    return Reply("malformed", attempts=attempts, detail=detail)
