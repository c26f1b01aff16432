"""``--help SECTION``: settings with defaults and meanings, read from the settings classes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from bpo_data.errors import UserError, nearest
from bpo_data.pipelines.ablation import Ablation
from bpo_data.pipelines.config import Config


def describe(section: str, recipe: str = "", values: Mapping[str, Any] | None = None) -> str:
    """A section's settings with defaults, meanings and what ``values`` of a recipe make of them.

    Raises UserError for an unknown section.
    """
    sections = typing.get_type_hints(Config) | {"ablation": Ablation}
    if section not in sections:
        raise UserError(
            f"There is no section {section}.{nearest(section, sections)} "
            f"There are {', '.join(sections)}."
        )
    lines = [f"Settings of {section}, with their defaults (recipe=NAME shows another recipe's):"]
    for key, default, meaning in documented(sections[section]):
        name = f"{section}.{key}"
        lines.append(f"  {name}={default}{set_by(recipe, name, default, values or {})}")
        lines.append(f"      {readable(meaning)}")
    return "\n".join(lines)


LONGEST = 60
"""Characters of a recipe's value that are shown."""


def set_by(recipe: str, name: str, default: str, values: Mapping[str, Any]) -> str:
    """What a recipe sets in place of a default; empty where it sets nothing else."""
    inside = {key.removeprefix(f"{name}."): one for key, one in values.items()}
    inside = {key: one for key, one in inside.items() if f"{name}.{key}" in values}
    value = values.get(name, inside or default)
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    if shown == default:
        return ""
    return f"   ({recipe}: {shown if len(shown) <= LONGEST else shown[:LONGEST] + ' ...'})"


def readable(meaning: str) -> str:
    """A meaning for the terminal: names of kinds in place of where they stand, no markup."""

    def names(found: re.Match[str]) -> str:
        module = importlib.import_module(f"bpo_data.{found[1]}")
        return "One of " + ", ".join(getattr(module, found[2]))

    meaning = re.sub(r"A name in ``([a-z.]+)\.([A-Z]+)``", names, meaning)
    return meaning.replace("``", "")


def documented(kind: type) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of a settings class, the meaning from the text below each field."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    meanings: dict[str, str] = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            meanings[statement.target.id] = " ".join(str(below.value.value).split())
    found = []
    for item in dataclasses.fields(kind):
        default = getattr(kind(), item.name)
        if dataclasses.is_dataclass(default):
            nested = documented(type(default))
            found += [(f"{item.name}.{name}", value, text) for name, value, text in nested]
        else:
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            found.append((item.name, shown, meanings.get(item.name, "")))
    return found
