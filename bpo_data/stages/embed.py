"""One unit vector per prompt of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.components import embedders, kinds
from bpo_data.components.embedders import Embedder, Server
from bpo_data.disk import folder_digests
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, vectors

VERSION = 1


@dataclass
class EmbedConfig:
    kind: str = "tfidf_svd"
    """A name in ``components.embedders.KINDS``, or ``package.module:name``."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of the kind: ``dim`` of tfidf_svd, ``model`` of encoder, ``model`` and ``base_url``
    of server ..."""

    seed: int = 0
    """Of the randomised SVD."""

    def embedder(self) -> Embedder:
        """The embedder these settings name. Raises UserError."""
        found: Embedder = kinds.build(embedders.KINDS, self.kind, self.options, "embed.kind")
        return found

    def problems(self) -> Iterator[str]:
        yield from kinds.problems(embedders.KINDS, self.kind, self.options, "embed.kind")


def ready(config: EmbedConfig) -> None:
    """Raise UserError when the server's key is missing, before the stages ahead are made."""
    embedder = config.embedder()
    if isinstance(embedder, Server):
        embedder.ready()


def outside(config: EmbedConfig) -> dict[str, str]:
    """Digests of a local encoder's files, so that a changed one is noticed."""
    return folder_digests("" if config.kind == "server" else str(config.options.get("model", "")))


def schema(config: EmbedConfig) -> pa.Schema:
    return columns(prompt_id=ID, embedding=pa.list_(pa.float32()))


def run(draft: Draft, config: EmbedConfig, runtime: Runtime, *, prompts: pa.Table) -> None:
    texts = pool_texts(prompts)
    if not texts:
        raise UserError(
            "embed: no prompt is in the pool. Lower load.test_share or load.seed_share, or give "
            "the source more prompts."
        )
    with draft.bar(len(texts), "vectors") as bar:
        desk = Desk(
            "embed",
            runtime,
            done=bar.update,
            shown=bar.set_postfix_str,
            spread=draft.in_parts,
            lines=draft.lines,
        )
        matrix = config.embedder()(list(texts.values()), config.seed, desk)
    desk.tell()
    draft.schema = columns(prompt_id=ID, embedding=vectors(matrix).type)
    rows = pa.table([pa.array(list(texts), ID), vectors(matrix)], schema=draft.schema)
    draft.write(rows)
    empty = int((abs(matrix).sum(axis=1) == 0).sum())
    draft.facts |= {"dim": matrix.shape[1], "empty": empty}
    if desk.replies:
        without = sum(reply.state != "ok" for reply in desk.replies)
        draft.note(without, len(texts), "prompts got no vector from the server; theirs are zeros")
        draft.facts |= {"requests": desk.facts()}


def pool_texts(prompts: pa.Table) -> dict[str, str]:
    """The pool's prompts by their id."""
    pool = prompts.filter(pc.equal(prompts["split"], "pool"))
    ids = pool["prompt_id"].to_pylist()
    return dict(zip(ids, map(text_of, pool["prompt"].to_pylist()), strict=True))


def text_of(prompt: list[dict[str, str]]) -> str:
    """All turns of a conversation as one text."""
    return "\n".join(turn["content"] for turn in prompt)
