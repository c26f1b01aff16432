"""Whom the trained policy is compared with: the SFT policy, or what an earlier run trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpo_data.disk import folder_digests
from bpo_data.errors import UserError
from bpo_data.policy import Policy, check_location, load_policy, policy_location

SETTING = "evaluate.against"
POINTER = "model.json"
"""What an artifact holds in place of a model that lies elsewhere."""


def location(against: str) -> tuple[str, str | None]:
    """(folder or hub name, revision) of an earlier run's policy.

    ``against`` is a ``train-...`` or ``sft-...`` folder, or the ``model`` folder in it. Raises
    UserError where there is no saved policy.
    """
    folder = Path(against)
    if not folder.is_dir():
        raise UserError(f"{SETTING}={against} is no folder. Name a run's train-... folder.")
    inside = (folder / "model").is_dir() or (folder / POINTER).is_file()
    model, revision = policy_location(folder) if inside else (str(folder), None)
    if not inside and not (folder / "config.json").is_file():
        raise UserError(
            f"{SETTING}={against} holds no trained policy. Name a run's train-... folder, or the "
            f"model folder in it."
        )
    check_location(model, SETTING)
    return model, revision


def problems(against: str) -> Iterator[str]:
    """What is wrong with the setting, before any work."""
    if against:
        try:
            location(against)
        except UserError as error:
            yield str(error)


def digests(against: str) -> dict[str, str]:
    """sha256 of each file of that policy, and of the pointer to one that lies elsewhere."""
    if not against:
        return {}
    found = folder_digests(location(against)[0])
    if (Path(against) / POINTER).is_file():
        found |= folder_digests(against)
    return {f"against/{name}": digest for name, digest in found.items()}


def load_opponent(against: str, device: str, dtype: str) -> Policy:
    """That policy. Raises UserError naming the setting."""
    return load_policy(*location(against), device, dtype, SETTING)
