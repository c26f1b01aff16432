"""What is to be done, its key, and how it differs from what was done before."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bpo_data.tables import canonical

HOW = {"how": True}
"""Metadata of a stage's setting that says how to work and not what comes out: never in the key."""


def settings_of(section: Any) -> dict[str, Any]:
    """A stage's settings that decide what comes out."""
    how = {field.name for field in fields(section) if field.metadata.get("how")}
    return {name: value for name, value in asdict(section).items() if name not in how}


@dataclass(frozen=True)
class Work:
    """What is to be done: everything that decides which rows come out."""

    stage: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Table name -> digest of the artifact that holds it."""
    outside: dict[str, str] = field(default_factory=dict)
    """Digests of what the settings point to outside the runs folder, such as the source's files."""

    shown: dict[str, str] = field(default_factory=dict)
    """Digests of what it only shows and hands on to no other stage, such as its inputs' facts."""

    @property
    def name(self) -> str:
        whole: list[Any] = [self.stage, self.version, self.settings, self.inputs, self.outside]
        whole += [self.shown] if self.shown else []
        return f"{self.stage}-{hashlib.sha256(canonical(whole).encode()).hexdigest()[:12]}"


def difference(manifest: dict[str, Any], work: Work) -> list[str]:
    """``["k 100 -> 200", "pairs changed"]``: how the work differs from one done before."""
    found = []
    if manifest["version"] != work.version:
        found.append(f"stage version {manifest['version']} -> {work.version}")
    before, now = leaves(manifest["settings"]), leaves(work.settings)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}")
    for kind in ("inputs", "outside"):
        was, is_now = manifest[kind], getattr(work, kind)
        found += [f"{name} changed" for name in sorted(is_now) if was.get(name) != is_now[name]]
    shown = manifest.get("shown", {})
    found += [
        f"{name} changed" for name in sorted(work.shown) if shown.get(name) != work.shown[name]
    ]
    tables = {one for one in found if not one.startswith("facts of ")}
    return [one for one in found if one in tables or one.removeprefix("facts of ") not in tables]


def leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"columns.prompt": "question"}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
