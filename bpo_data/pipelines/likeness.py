"""What a stage may take, told from an artifact made of the same source with nearly its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_data.shelf import Shelf
from bpo_data.stages import EVERY, STAGES
from bpo_data.work import leaves, settings_of

if TYPE_CHECKING:
    from bpo_data.pipelines.config import Config

GROWTH: dict[str, tuple[str, ...]] = {
    "sft": ("sft.steps", "sft.batch"),
    "train": ("train.steps", "train.batch"),
    "augment": ("select.keep", "augment.responses"),
    "score": ("select.keep", "augment.responses"),
    "gradients": ("select.keep", "augment.responses"),
    "pair": ("select.keep", "pair.per_prompt"),
    "cluster": ("select.keep", "pair.per_prompt"),
    "allocate": ("select.keep", "pair.per_prompt"),
    "export": ("allocate.budget",),
    "evaluate": ("evaluate.prompts", "evaluate.draws"),
}
"""What a stage's time grows with, in proportion, where both have a number for it."""
LIKE = 4
"""An artifact that differs in more settings than this, its inputs' among them, says nothing."""
MODELS = ("sft", "train")
"""Stages whose size is that of a model, however long they take."""


@dataclass(frozen=True)
class Like:
    """What the artifact most like it leads one to expect of a stage."""

    rows: int
    seconds: float
    bytes: int


Manifests = Mapping[str, Mapping[str, Any]]
"""Manifests by the digest of their artifact."""


def all_manifests(shelf: Shelf) -> Manifests:
    """Those of every finished artifact."""
    return {one["digest"]: one for stage in EVERY for _, one in shelf.manifests(stage)}


def like(manifests: Manifests, name: str, config: Config) -> Like | None:
    """None where nothing like it was made of the same source, so that nothing is known."""
    wanted = {stage: settings_of(getattr(config, stage)) for stage in STAGES}
    found = []
    for manifest in manifests.values():
        if manifest["stage"] != name:
            continue
        ancestry = {one["stage"]: one["settings"] for one in ancestors(manifest, manifests)}
        apart = differing(ancestry, wanted)
        grown = set(GROWTH.get(name, ()))
        other_source = any(key.startswith("load.") for key in apart)
        if "load" in ancestry and not other_source and len(apart - grown) <= LIKE:
            found.append((-len(apart), manifest["made"], manifest, ancestry))
    if not found:
        return None
    _, _, manifest, ancestry = max(found, key=lambda one: one[:2])
    factor = growth(name, ancestry, wanted)
    size = sum(file["bytes"] for file in manifest["files"].values())
    return Like(
        rows=manifest["rows"],
        seconds=factor * manifest["seconds"],
        bytes=round(size if name in MODELS else factor * size),
    )


def ancestors(manifest: Mapping[str, Any], manifests: Manifests) -> Iterator[Mapping[str, Any]]:
    """An artifact's manifest and those of all that it was made from, as far as they are there."""
    seen: set[str] = set()
    waiting = [manifest]
    while waiting:
        one = waiting.pop()
        if one["digest"] not in seen:
            seen.add(one["digest"])
            yield one
            waiting += [manifests[key] for key in one["inputs"].values() if key in manifests]


def differing(
    ancestry: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """Full names of the settings that differ, of all stages that it was made from."""
    found = set()
    for stage, settings in ancestry.items():
        was, now = leaves(dict(settings)), leaves(dict(wanted.get(stage, settings)))
        keys = was.keys() | now.keys()
        found |= {f"{stage}.{key}" for key in keys if was.get(key) != now.get(key)}
    return found


def growth(
    name: str, ancestry: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]
) -> float:
    """How many times as much there is to do."""
    factor = 1.0
    for setting in GROWTH.get(name, ()):
        stage, _, key = setting.partition(".")
        was, now = ancestry.get(stage, {}).get(key), wanted[stage].get(key)
        if was and now:
            factor *= now / was
    return factor
