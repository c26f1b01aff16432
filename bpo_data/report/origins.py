"""How to make it again: the recipe, versions, and what is only a stand-in."""

from __future__ import annotations

import platform
import typing
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, cast

from bpo_data import __version__
from bpo_data.cards.judges import Member
from bpo_data.cards.privacy import HIDDEN, without_secrets
from bpo_data.work import settings_of

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "faiss-cpu"),
    *("faiss-gpu", "scikit-learn", "scipy", "numpy", "pyarrow", "jinja2"),
)
HIDDEN_SAID = f"Values shown as {HIDDEN} looked like keys; they have to be filled in."
STAND_INS = ("verifier", "preference")
"""Judges that show the way without a model; what they like may be far from what people like."""


def versions() -> list[tuple[str, str]]:
    """Packages that figures may hang on, as installed now."""
    found = [("bpo_data", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings, by stage, that do not stand at their default; what looks like a key is hidden.

    Options of kinds stay whole: a recipe replaces them whole.
    """
    from bpo_data.stages import EVERY  # the list names modules that read this one

    found = {}
    for stage, values in settings.items():
        default = settings_of(typing.get_type_hints(EVERY[stage].module.schema)["config"]())
        own = {name: value for name, value in values.items() if value != default.get(name)}
        if own:
            found[stage] = own
    return cast("dict[str, dict[str, Any]]", without_secrets(found))


def recipe(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A recipe, in YAML, that asks for these settings, by stage, and for all other defaults.

    A comment says so where something looked like a key and is hidden.
    """
    import yaml

    kept = differing(settings)
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100)
    return f"# {HIDDEN_SAID}\n{text}" if HIDDEN in text else text


def stand_ins(sft: Mapping[str, Any], judges: Iterable[Member]) -> dict[str, Any]:
    """What stood in for a model that one would mean to use, for card and report alike.

    ``policy`` says whether it was trained from nothing; ``judges`` are those of ``STAND_INS``, out
    of all that ``cards.judges.members`` finds, however deep in panels.
    """
    return {
        "policy": sft["kind"] == "scratch",
        "judges": [member for member in judges if member.kind in STAND_INS],
    }
