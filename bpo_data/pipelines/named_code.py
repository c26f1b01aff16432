"""Code that a recipe names: a recipe of somebody else is data, and runs none unless that is asked.

``cluster.kind=my_lab.spectral:Cut`` imports a module and calls what it finds there, with whatever
options are given. On the command line that is for whoever types it to know. In a file it would make
reading settings as good as running a program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bpo_data.errors import UserError

TRUSTED = "BPO_TRUSTED_CODE"
"""Environment variable: names like ``package.module:name``, with commas between them."""

NAMES_CODE = ("kind", "pick", "function", "formats")
"""Last words of the settings that may name code."""


def check(recipe: str, values: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Raise UserError for code in a recipe's ``values`` that neither the settings ``given`` on the
    command line nor the environment name as well."""
    trusted = [name.strip() for name in os.environ.get(TRUSTED, "").split(",")]
    for setting, name in named(values):
        if name not in trusted and not any(name in value for value in given.values()):
            raise UserError(
                f"recipe={recipe} names code that would run: {setting}={name}. If you know and "
                f"trust it, set {TRUSTED}={name}, or give the setting on the command line too."
            )


def named(value: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """(setting, ``package.module:name``) for all code named in values, however deep."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from named(one, f"{setting}.{key}" if setting else str(key))
    elif isinstance(value, list):
        for one in value:
            yield from named(one, setting)
    elif isinstance(value, str) and ":" in value and setting.rpartition(".")[2] in NAMES_CODE:
        yield setting, value
