"""Keep exactly ``budget`` pairs: the depth of each prompt follows from its gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.components import allocators, kinds
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, lookup, maybe

VERSION = 1


@dataclass
class AllocateConfig:
    kind: str = "center"
    """A name in ``components.allocators.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind."""

    budget: int = 0
    """Pairs to keep, exactly; 0 means ``allocate.share`` of the pool's pairs."""

    share: float = 0.5
    """Share of the pairs to keep when ``allocate.budget`` is 0 (at least one per prompt)."""

    floor: bool = True
    """Keep at least one pair of every prompt that has any."""

    max_depth: int = 0
    """Most pairs of one prompt; 0 means as many as ``pair.per_prompt`` made."""

    seed: int = 0
    """Draws for the kinds that draw."""

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(allocators.KINDS, self.kind, self.options, "allocate.kind")
        if self.budget < 0 or self.max_depth < 0:
            yield "allocate.budget and allocate.max_depth are counts; 0 is the default rule."
        if not 0 < self.share <= 1:
            yield f"allocate.share={self.share}: a share lies above 0, up to 1."


def schema(config: AllocateConfig) -> pa.Schema:
    return columns(
        pair_id=ID,
        prompt_id=ID,
        kept=pa.bool_(),
        rank=maybe(pa.int32()),
        depth=pa.int32(),
        reason=pa.string(),
    )


def run(
    draft: Draft, config: AllocateConfig, runtime: Runtime, *, pairs: pa.Table, clusters: pa.Table
) -> None:
    clusters = lookup(clusters, "pair_id", pairs["pair_id"])
    pool = allocators.Pool(
        pair_id=pairs["pair_id"].to_pylist(),
        prompt_id=pairs["prompt_id"].to_pylist(),
        cluster=clusters["cluster"].to_numpy(),
        distance=clusters["distance"].to_numpy(),
    )
    available = Counter(pool.prompt_id)
    cap = config.max_depth or max(available.values())
    budget = checked_budget(config, available, cap)
    allocator = kinds.build(allocators.KINDS, config.kind, config.options, "allocate.kind")
    choice = allocator(pool, budget, config.floor, cap, config.seed)
    check(choice, pool, budget, cap, config)
    depth = Counter(pool.prompt_id[row] for row in choice.kept)
    rank = {row: place for place, row in enumerate(choice.kept)}
    reason = dict(zip(choice.kept, choice.reason, strict=True))
    rows = [
        {
            "pair_id": pair,
            "prompt_id": prompt,
            "kept": row in rank,
            "rank": rank.get(row),
            "depth": depth[prompt],
            "reason": reason.get(row) or ("cap" if depth[prompt] == cap else "dropped"),
        }
        for row, (pair, prompt) in enumerate(zip(pool.pair_id, pool.prompt_id, strict=True))
    ]
    draft.write(pa.Table.from_pylist(rows, schema=draft.schema))
    depths = Counter(depth[prompt] for prompt in available)
    draft.facts |= {
        "result": f"{budget:,} of {len(rows):,} pairs",
        "budget": budget,
        "pool": len(rows),
        "prompts": len(available),
        "reasons": dict(Counter(row["reason"] for row in rows)),
        "depths": {str(key): depths[key] for key in sorted(depths)},
        "depths_before": {str(k): v for k, v in sorted(Counter(available.values()).items())},
    }


def checked_budget(config: AllocateConfig, available: Counter[str], cap: int) -> int:
    """The number of pairs to keep. Raises UserError when it cannot be met, with the numbers."""
    prompts = len(available)
    room = sum(min(count, cap) for count in available.values())
    floor = prompts if config.floor else 1
    budget = config.budget or min(room, max(floor, round(config.share * room)))
    if budget > room:
        capped = f" at a max_depth of {config.max_depth}" if config.max_depth else ""
        raise UserError(
            f"allocate.budget={budget} but the pool holds {room} pairs of {prompts} prompts"
            f"{capped}. Lower allocate.budget, or raise pair.per_prompt or augment.responses."
        )
    if budget < floor:
        raise UserError(
            f"allocate.budget={budget} but {prompts} prompts have pairs and each is to keep one. "
            f"Raise allocate.budget, lower select.keep, or set allocate.floor=false."
        )
    return budget


def check(
    choice: allocators.Choice, pool: allocators.Pool, budget: int, cap: int, config: AllocateConfig
) -> None:
    """What every allocator owes, an outside one too. Raises UserError naming what it broke."""
    rule, kept = f"allocate.kind={config.kind}", choice.kept
    if len(kept) != budget or len(set(kept)) != budget or len(choice.reason) != budget:
        raise UserError(f"{rule} kept {len(set(kept))} distinct pairs, not {budget}.")
    if not all(0 <= row < len(pool.pair_id) for row in kept):
        raise UserError(f"{rule} kept a row that the pool does not have.")
    depth = Counter(pool.prompt_id[row] for row in kept)
    if max(depth.values()) > cap:
        raise UserError(f"{rule} went past the cap of {cap} pairs of one prompt.")
    if config.floor and len(depth) < len(set(pool.prompt_id)):
        raise UserError(f"{rule} left a prompt without a pair; set allocate.floor=false for it.")
