"""Two policies into one between rounds: a mean of their weights, or beyond the newer one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.policy import (
    Policy,
    copy_round,
    load_policy,
    policy_location,
    save_policy,
)
from bpo_data.runtime import Runtime, quiet_libraries
from bpo_data.tables import columns

if TYPE_CHECKING:
    import torch

VERSION = 1


@dataclass
class BlendConfig:
    share: float = 0.5
    """Share of the newer policy's weights; the rest is the older one's. Above 1 goes on in the
    direction from the older to the newer."""

    def problems(self) -> Iterator[str]:
        """It is worked out of the settings of ``rounds``, which have their own bounds."""
        yield from ()


def schema(config: BlendConfig) -> pa.Schema:
    """One row: numbers blended, and the length of the difference of both policies' weights."""
    return columns(parameters=pa.int64(), distance=pa.float64())


def run(draft: Draft, config: BlendConfig, runtime: Runtime) -> None:
    """Write ``model/``, in float32, with the tokenizer of the newer policy."""
    quiet_libraries()
    newer, older = (loaded(draft, name) for name in ("newer", "older"))
    parameters, distance = blend(newer.model, older.model, config.share)
    save_policy(newer, draft.file("model"))
    copy_round(draft.inputs["newer"].folder, draft.folder)
    beyond = config.share > 1
    words = f"{config.share - 1:g} beyond the newer" if beyond else f"{config.share:g} of the newer"
    draft.facts |= {"result": words, "distance": distance}
    draft.write(pa.table({"parameters": [parameters], "distance": [distance]}).cast(draft.schema))


def loaded(draft: Draft, name: str) -> Policy:
    model, revision = policy_location(draft.inputs[name].folder)
    return load_policy(model, revision, "cpu", "float32")


def blend(newer: torch.nn.Module, older: torch.nn.Module, share: float) -> tuple[int, float]:
    """``newer`` becomes ``share`` of itself and 1 - ``share`` of ``older``, parameter by parameter.

    (numbers, Euclidean distance of the two before). Tied parameters are moved once.
    """
    import torch

    others = dict(older.named_parameters())
    numbers, squares = 0, 0.0
    with torch.no_grad():
        for name, parameter in newer.named_parameters():
            change = parameter - others[name]
            numbers += change.numel()
            squares += float(change.double().square().sum())
            parameter.copy_(others[name] + share * change)
    return numbers, squares**0.5
