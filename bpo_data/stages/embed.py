"""One unit vector per prompt of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import embedders, kinds
from bpo_data.disk import folder_digests
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, vectors

VERSION = 1


@dataclass
class EmbedConfig:
    kind: str = "tfidf_svd"
    """A name in ``components.embedders.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind, such as ``dim`` of tfidf_svd or ``model`` of encoder."""

    seed: int = 0
    """Of the randomised SVD."""

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(embedders.KINDS, self.kind, self.options, "embed.kind")


def outside(config: EmbedConfig) -> dict[str, str]:
    """Digests of a local encoder's files, so that a changed one is noticed."""
    return folder_digests(str(config.options.get("model", "")))


def schema(config: EmbedConfig) -> pa.Schema:
    return columns(prompt_id=ID, embedding=pa.list_(pa.float32()))


def run(draft: Draft, config: EmbedConfig, runtime: Runtime, *, prompts: pa.Table) -> None:
    pool = prompts.filter(pc.equal(prompts["split"], "pool"))
    if pool.num_rows == 0:
        raise UserError(
            "embed: no prompt is in the pool. Lower load.test_share or load.seed_share, or give "
            "the source more prompts."
        )
    embedder = kinds.build(embedders.KINDS, config.kind, config.options, "embed.kind")
    device = runtime.torch_device() if config.kind != "tfidf_svd" else "cpu"
    matrix = embedder(
        [text_of(prompt) for prompt in pool["prompt"].to_pylist()], config.seed, device
    )
    draft.schema = columns(prompt_id=ID, embedding=vectors(matrix).type)
    draft.write(pa.table([pool["prompt_id"], vectors(matrix)], schema=draft.schema))
    draft.facts |= {"dim": matrix.shape[1], "empty": int((abs(matrix).sum(axis=1) == 0).sum())}


def text_of(prompt: list[dict[str, str]]) -> str:
    """All turns of a conversation as one text."""
    return "\n".join(turn["content"] for turn in prompt)
