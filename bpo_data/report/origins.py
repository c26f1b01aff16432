"""How to make it again: the recipe, versions, and what is only a stand-in."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from bpo_data import __version__
from bpo_data.artifacts import Artifact

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "faiss-cpu"),
    *("faiss-gpu", "scikit-learn", "scipy", "numpy", "pyarrow", "jinja2"),
)
PROGRAMS = {
    "verifier": "a program that marks answers",
    "preference": "a ranker fitted on your pairs",
}
"""Judges that are no model of language."""


def versions() -> list[tuple[str, str]]:
    """Packages that figures may hang on, as installed now."""
    found = [("bpo_data", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def recipe(settings: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]) -> str:
    """A recipe, in YAML, that asks for these settings whatever any other recipe says.

    ``settings`` and ``defaults`` are by stage. What stands at its default is left out, but for the
    options of kinds: a recipe replaces them whole.
    """
    import yaml

    own = {
        stage: {name: value for name, value in values.items() if value != defaults[stage].get(name)}
        for stage, values in settings.items()
    }
    kept = {stage: values for stage, values in own.items() if values}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100)


def stand_ins(inputs: Mapping[str, Artifact]) -> Iterator[str]:
    """What of this run is no model one would use; each in a few words."""
    if inputs["policy"].facts.get("kind") == "scratch":
        yield "the policy was trained from nothing"
    settings = inputs["scores"].manifest["settings"]
    judges = [settings["kind"]]
    if settings["kind"] == "panel":
        judges = [judge.get("kind", "") for judge in settings["options"].get("judges", [])]
    for kind in dict.fromkeys(judges):
        if kind in PROGRAMS:
            yield f"the judge is {PROGRAMS[kind]}"
