"""Values of settings as people write them: text to the type a setting asks for."""

from __future__ import annotations

import math
from typing import Any

from bpo_data import yaml_text

TYPES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "settings by name, such as key.name=value",
    list: "a list, such as [one,two]",
}


def typed(value: Any, kind: Any) -> Any:
    """A value as its type asks; ValueError where it cannot be. Text stays letter for letter.

    ``${`` is escaped: to OmegaConf it would point to another setting.
    """
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value.replace("${", "\\${")
    if isinstance(value, str):
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        value = int(value) if kind is int else float(value) if kind is float else parsed(value)
    if isinstance(value, bool) and kind in (int, float):
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return escaped(value)


def parsed(text: str) -> Any:
    """A command line's option as YAML would read it; what it cannot read is text."""
    import yaml

    if text[:1] in ("[", "{"):
        return yaml.safe_load(yaml_text.checked(text))
    try:
        value = yaml.safe_load(yaml_text.checked(text))
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (int, float, bool)) else text


def escaped(value: Any) -> Any:
    """Nested values with ``${`` escaped."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: escaped(one) for key, one in value.items()}
    return [escaped(one) for one in value] if isinstance(value, list) else value
