"""What settings say of the user's machine and keys, taken out before they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

HIDDEN = "[hidden]"

SECRET_NAME = re.compile(
    r"^(?:key|token)$|(?:api|access|auth|bearer|hf|secret|private)[-_ ]?(?:key|token)"
    r"|password|passwd|secret|authorization|credential|cookie",
    re.IGNORECASE,
)
"""Names under which text is a secret; ``key_variable`` holds a variable's name and is none."""

SECRET_VALUE = re.compile(
    r"\b(?:sk-[\w-]{12,}|hf_[A-Za-z0-9]{12,}|gh[opsu]_[A-Za-z0-9]{12,}|AKIA[0-9A-Z]{12,})"
    r"|\bBearer\s+\S+|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
)
"""What keys look like, wherever they stand."""

PATH = re.compile(r"(?:/|~|\.\.?/)[^\n]*\Z")

NOT_JSON_IN_MARKDOWN = re.compile(
    r"[`\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


def without_secrets(value: Any, name: str = "") -> Any:
    """Settings with ``[hidden]`` for every text that is a secret by its name or its look.

    No setting of ours holds a key, but ``extra`` and ``options`` hold whatever they are given.
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one, name) for one in value]
    if not isinstance(value, str):
        return value
    if value and SECRET_NAME.search(name):
        return HIDDEN
    return SECRET_VALUE.sub(HIDDEN, value)


def folders_in(settings: Any, name: str = "") -> dict[str, str]:
    """Path -> file name, for each text in the settings that is a path on the user's machine."""
    found: dict[str, str] = {}
    for text in paths_in(settings, name):
        last = PurePath(text).name
        if last and last != text:
            found[text] = last
    return found


def paths_in(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from paths_in(one, str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from paths_in(one, name)
    elif isinstance(value, str) and (name == "path" or PATH.match(value)):
        yield value


def shortened(value: Any, folders: Mapping[str, str]) -> Any:
    """Settings with the file's name for each path in ``folders``."""
    if isinstance(value, Mapping):
        return {key: shortened(one, folders) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(one, folders) for one in value]
    return folders.get(value, value) if isinstance(value, str) else value


def as_json(settings: Any) -> str:
    """JSON that is YAML too, and that closes no fence of Markdown and turns no text around.

    Letters beyond ASCII stay: JSON writes those above U+FFFF as two escapes, YAML as one.
    """
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    return NOT_JSON_IN_MARKDOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
