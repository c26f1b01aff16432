"""What the run cost: requests with tokens and money, time and disk of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bpo_data.artifacts import Artifact
from bpo_data.errors import some

SUMMED = ("replies", "attempts", "tokens_in", "tokens_out")


def stage_rows(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """What each stage before the report made, seconds and bytes on disk, in order.

    ``link`` leads from the report's folder to the stage's: both lie in the same runs folder.
    """
    return [
        {
            "stage": called(name, inputs),
            "result": used.facts.get("result") or some(used.rows, "row"),
            "seconds": used.manifest["seconds"],
            "bytes": sum(file["bytes"] for file in used.manifest["files"].values()),
            "folder": str(used.folder),
            "link": f"../{quote(used.folder.name)}/",
            "digest": used.digest,
            "made": used.manifest["made"],
        }
        for name, used in inputs.items()
    ]


def called(name: str, inputs: Mapping[str, Artifact]) -> str:
    """The stage, with its round where there are several, as the plan calls it.

    The name of a table has the number of an earlier round; a blend's says what it is for.
    """
    stage = inputs[name].manifest["stage"]
    if stage == "blend":
        return name
    if f"{name} 1" in inputs:
        return f"{stage} {inputs['rounds'].manifest['settings']['count']}"
    return " ".join([stage, *name.split(" ")[1:]])


def request_rows(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """What each stage asked of language models; stages that asked nothing are left out."""
    found = []
    for name, used in inputs.items():
        asked = used.facts.get("requests") or {}
        if asked.get("replies"):
            found.append(
                {
                    "stage": called(name, inputs),
                    "models": asked.get("models", []),
                    "states": asked["states"],
                    "usd": asked.get("usd"),
                    **{name: asked[name] for name in SUMMED},
                }
            )
    return found


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over stages; money is None as soon as one stage's is not known."""
    prices = [row["usd"] for row in rows]
    usd = None if any(price is None for price in prices) else sum(prices)
    return {"usd": usd, **{name: sum(row[name] for row in rows) for name in SUMMED}}
