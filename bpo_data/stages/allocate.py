"""Keep exactly ``budget`` pairs: the depth of each prompt follows from its gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from bpo_data.artifacts import Draft
from bpo_data.components import allocators, kinds
from bpo_data.components.allocators import Allocator, Choice, Pool
from bpo_data.components.embedders import TfidfSvd, unit
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.runtime import Runtime
from bpo_data.stages.cluster import ClusterConfig, directions_of
from bpo_data.tables import ID, columns, lookup, matrix, maybe

VERSION = 1


@dataclass
class AllocateConfig:
    kind: str = "margin"
    """A name in ``components.allocators.KINDS``, or ``package.module:name``; ``center`` is our
    reading of the paper's rule."""

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

    def allocator(self) -> Allocator:
        """The rule these settings name. Raises UserError."""
        found: Allocator = kinds.build(allocators.KINDS, self.kind, self.options, "allocate.kind")
        return found

    def limits(self, deepest: int) -> tuple[bool, int]:
        """Whether there is a floor, and the cap, where prompts have up to ``deepest`` pairs."""
        cap = min(deepest, self.max_depth or deepest)
        return allocators.limits(self.allocator(), self.floor, cap)

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
    pairs = pairs.sort_by("pair_id")
    pool = pool_of(draft, runtime, pairs, lookup(clusters, "pair_id", pairs["pair_id"]))
    available = Counter(pool.prompt_id)
    floor, cap = config.limits(max(available.values()))
    budget = checked_budget(config, available, floor, cap)
    with threadpool_limits(1):  # more threads add in another order
        choice = config.allocator()(pool, budget, floor, cap, config.seed)
    check(choice, pool, budget, floor, cap, config)
    depth = Counter(pool.prompt_id[row] for row in choice.kept)
    table = rows_of(pool, choice, depth, cap, draft.schema)
    draft.write(table)
    depths = Counter(depth[prompt] for prompt in available)
    draft.facts |= {
        "result": f"{budget:,} of {table.num_rows:,} pairs",
        "budget": budget,
        "pool": table.num_rows,
        "prompts": len(available),
        "prompts_without_pairs": depths[0],
        "prompts_at_floor": depths[1] if floor else 0,
        "prompts_at_cap": depths[cap],
        "reasons": dict(Counter(table["reason"].to_pylist())),
        "depths": {str(key): depths[key] for key in sorted(depths)},
        "depths_before": {str(k): v for k, v in sorted(Counter(available.values()).items())},
        **choice.facts,
    }


def rows_of(
    pool: Pool, choice: Choice, depth: Counter[str], cap: int, schema: pa.Schema
) -> pa.Table:
    """A row for each pair of the pool, kept or not; ``depth`` is what each prompt keeps."""
    count = len(pool.pair_id)
    kept, rank = np.zeros(count, dtype=bool), np.zeros(count, dtype=np.int32)
    kept[choice.kept], rank[choice.kept] = True, np.arange(len(choice.kept))
    depths = np.fromiter((depth[prompt] for prompt in pool.prompt_id), np.int32, count)
    reason = np.where(depths == cap, "cap", "dropped").astype(object)
    reason[choice.kept] = choice.reason
    found = [
        pa.array(pool.pair_id, ID),
        pa.array(pool.prompt_id, ID),
        pa.array(kept),
        pa.array(rank, mask=~kept),
        pa.array(depths),
        pa.array(reason, pa.string()),
    ]
    return pa.table(found, schema=schema)


def checked_budget(config: AllocateConfig, available: Counter[str], floor: bool, cap: int) -> int:
    """The number of pairs to keep. Raises UserError when it cannot be met, with the numbers."""
    prompts = len(available)
    room = sum(min(count, cap) for count in available.values())
    least = prompts if floor else 1
    budget = config.budget or min(room, max(least, round(config.share * room)))
    if budget > room:
        capped = f", at most {cap} of each" if cap < max(available.values()) else ""
        raise UserError(
            f"allocate.budget={budget} but the pool holds {room} pairs of {prompts} prompts"
            f"{capped}. Lower allocate.budget (0 keeps allocate.share of any pool), or raise "
            f"pair.per_prompt or augment.responses."
        )
    if budget < least:
        raise UserError(
            f"allocate.budget={budget} but {prompts} prompts have pairs and each is to keep one. "
            f"Raise allocate.budget, lower select.keep, or set allocate.floor=false."
        )
    return budget


def check(
    choice: Choice, pool: Pool, budget: int, floor: bool, cap: int, config: AllocateConfig
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
    if floor and len(depth) < len(set(pool.prompt_id)):
        raise UserError(f"{rule} left a prompt without a pair; set allocate.floor=false for it.")


def pool_of(draft: Draft, runtime: Runtime, pairs: pa.Table, clusters: pa.Table) -> Pool:
    """What there is to choose from; gradients and texts are read by the rules that ask for them."""

    def loss(column: str) -> np.ndarray:
        rows = draft.inputs["gradients"].table(["response_id", column, "tokens"])
        chosen = lookup(rows, "response_id", pairs["chosen_id"])
        return -chosen[column].to_numpy().astype(np.float64) / chosen["tokens"].to_numpy()

    return Pool(
        pair_id=pairs["pair_id"].to_pylist(),
        prompt_id=pairs["prompt_id"].to_pylist(),
        cluster=clusters["cluster"].to_numpy(),
        distance=clusters["distance"].to_numpy(),
        usefulness=clusters["usefulness"].to_numpy(),
        informativeness=clusters["informativeness"].to_numpy(),
        margin=pairs["margin"].to_numpy(),
        gradients=lambda: unit_gradients(draft, pairs),
        embeddings=lambda: text_vectors(draft, runtime, pairs),
        perplexity=lambda: np.exp(loss("log_prob")),
        ifd=lambda: loss("log_prob") / np.maximum(loss("unprompted_log_prob"), 1e-9),
    )


def unit_gradients(draft: Draft, pairs: pa.Table) -> np.ndarray:
    """The directions that were clustered, (n, d) float32: of the cluster stage's loss and beta."""
    config = ClusterConfig(**draft.inputs["clusters"].manifest["settings"])
    gradients = draft.inputs["gradients"].table()

    def rows_of(names: pa.ChunkedArray) -> pa.Table:
        return lookup(gradients, "response_id", names.unique())

    return directions_of(pairs, rows_of, config).directions


def text_vectors(draft: Draft, runtime: Runtime, pairs: pa.Table) -> np.ndarray:
    """What pairs say, (n, d) float32 unit rows: prompt, chosen and rejected response side by side.

    Prompts have the vectors of the embed stage, responses those of TF-IDF with truncated SVD over
    the pairs' responses, and each of the three has the same weight: the cosine of two pairs is the
    mean of three cosines.
    """
    prompts = lookup(draft.inputs["embeddings"].table(), "prompt_id", pairs["prompt_id"])
    ids = pa.concat_arrays([pairs[side].combine_chunks() for side in ("chosen_id", "rejected_id")])
    used = ids.unique().sort()
    texts = lookup(draft.inputs["responses"].table(["response_id", "text"]), "response_id", used)
    vectors = TfidfSvd()(texts["text"].to_pylist(), 0, Desk("allocate", runtime))
    sides = vectors[pc.index_in(ids, used).to_numpy()]
    count = pairs.num_rows
    return unit(np.hstack([matrix(prompts["embedding"]), sides[:count], sides[count:]]))
