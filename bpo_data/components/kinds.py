"""Resolve ``kind=<name>`` or ``kind=package.module:name`` to a component, with its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bpo_data.errors import UserError, nearest

Kinds = Mapping[str, Callable[..., Any]]


def find(kinds: Kinds, kind: str, setting: str) -> Callable[..., Any]:
    """The component's class. Raises UserError naming the setting, and the nearest name."""
    if kind in kinds:
        return kinds[kind]
    if ":" in kind:
        return outside(kind, setting)
    raise UserError(
        f"{setting}={kind} is not known.{nearest(kind, kinds.keys())} "
        f"There are {', '.join(kinds)}; or name your own as package.module:name."
    )


def outside(name: str, setting: str) -> Any:
    """The object ``package.module:name`` points to. Raises UserError when it is not there."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{setting}={name} cannot be imported ({error}). Install it, or check the name."
        ) from error


def build(kinds: Kinds, kind: str, options: Mapping[str, Any], setting: str) -> Any:
    """The component made with its options; an unknown option is a UserError."""
    component = find(kinds, kind, setting)
    section = setting.rpartition(".")[0]
    known = {
        name
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for name in options:
        if name not in known:
            raise UserError(
                f"{section}.options.{name} is not an option of {setting}={kind}."
                f"{nearest(name, known)} It has {', '.join(sorted(known)) or 'none'}."
            )
    try:
        return component(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}.options of {setting}={kind}: {error}") from error


def problems(kinds: Kinds, kind: str, options: Mapping[str, Any], setting: str) -> Iterator[str]:
    """What is wrong with a kind and its options, found while settings are read."""
    try:
        build(kinds, kind, options, setting)
    except UserError as error:
        yield str(error)
