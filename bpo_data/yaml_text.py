"""YAML as data alone: bounded in size, depth and what its aliases come to, and asking for nothing.

The loaders used on it make no objects (``!!python/...`` is refused by them); here is what they let
through: aliases of aliases that a few lines multiply to billions, nesting beyond Python's stack,
and OmegaConf's resolvers, by which a recipe of somebody else would read the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**20
"""Bytes of a file; our largest recipe has 3,000."""
MOST = 20_000
"""Values and keys, those counted anew that an alias repeats."""
DEEPEST = 50
"""Lists and mappings inside one another."""

_OPENS_OR_ENDS = re.compile(r"(\\*)(\$\{)|[:}]")


class Refused(yaml.YAMLError):
    """Text that no setting has a use for."""


def read(path: str | Path) -> str:
    """The text of a YAML file, checked. Raises OSError, and YAMLError for what is refused."""
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise Refused(f"it has more than {LARGEST:,} bytes, which no settings need")
    try:
        return checked(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Refused(f"byte {error.start + 1} is not UTF-8") from error


def checked(text: str) -> str:
    """The text itself. Raises YAMLError where it is none, too deep, or its aliases too many."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    size = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, size))
            sizes.pop(anchor or "", None)
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise Refused(f"the alias *{anchor} stands for nothing, or for what it is in")
            size += sizes[anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            sizes[anchor or ""] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = opened.pop()
            size += 1
            sizes[name or ""] = size - before
        if len(opened) > DEEPEST:
            raise Refused(f"it is nested more than {DEEPEST} deep")
        if size > MOST:
            raise Refused(f"its aliases come to more than {MOST:,} values")
    return text


def resolvers(value: Any) -> Iterator[str]:
    """The texts in a recipe's values that ask a resolver, such as ``${oc.env:HOME}``."""
    if isinstance(value, dict):
        for one in value.values():
            yield from resolvers(one)
    elif isinstance(value, list):
        for one in value:
            yield from resolvers(one)
    elif isinstance(value, str) and _asks(value):
        yield value


def _asks(text: str) -> bool:
    """Whether a colon stands inside a ``${...}`` that is not escaped."""
    depth = 0
    for found in _OPENS_OR_ENDS.finditer(text):
        if found[2]:
            depth += 1 - len(found[1]) % 2
        elif found[0] == "}":
            depth = max(0, depth - 1)
        elif depth:
            return True
    return False
