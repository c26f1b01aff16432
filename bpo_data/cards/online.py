"""What a dataset of a later online round owes to the rounds before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpo_data.artifacts import Artifact

DIGITS = 9
"""Decimals of a share: 1.1 - 1 is 0.1 and no more."""


def settings(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Those of ``rounds`` that an export's inputs tell of; empty of the first round.

    A later one is given ``trained`` (the policy that the round before trained), ``start`` where the
    round began elsewhere, and ``reference`` where its losses compare with another policy.
    """
    if "trained" not in inputs:
        return {}
    found: dict[str, Any] = {"count": inputs["trained"].facts["round"] + 1}
    if "start" in inputs:
        found["extrapolate"] = round(share(inputs["start"]) - 1, DIGITS)
    if "reference" in inputs:
        mean = inputs["reference"].manifest["stage"] == "blend"
        found["reference"] = "ema" if mean else "sft"
        if mean:
            found["decay"] = round(1 - share(inputs["reference"]), DIGITS)
    return found


def share(blend: Artifact) -> float:
    return float(blend.manifest["settings"]["share"])
