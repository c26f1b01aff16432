"""One low-rank projected gradient per response, at the SFT policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns, lookup, vectors

if TYPE_CHECKING:
    from bpo_data.gradients.engine import ResponseGradients
    from bpo_data.policy import Policy

VERSION = 1
PART_ROWS = 256  # part of the format: batches never straddle a part
SET_ASIDE = pa.schema([("response_id", pa.string()), ("reason", pa.string())])


@dataclass
class GradientsConfig:
    rank: int = 16
    """Rank of the two-sided projection: each linear layer leaves rank * rank numbers."""

    dim: int = 1024
    """Numbers kept per response after the layers are sketched together."""

    layers: str = "blocks"
    """``blocks`` (linear layers but the output head), ``all``, or a regular expression of names."""

    dtype: str = "auto"
    """``auto`` (the model's own), ``float32`` or ``bfloat16``; sums are float32 always."""

    batch_tokens: int = 8192
    """Tokens in one batch, padding counted."""

    seed: int = 0
    """Draws the projections, with each layer's name."""

    def problems(self) -> Iterator[str]:
        if min(self.rank, self.dim, self.batch_tokens) < 1:
            yield "gradients.rank, gradients.dim and gradients.batch_tokens must be at least 1."
        if self.dtype not in ("auto", "float32", "bfloat16"):
            yield f"gradients.dtype={self.dtype}: choose auto, float32 or bfloat16."


def schema(config: GradientsConfig) -> pa.Schema:
    return columns(
        response_id=ID,
        gradient=pa.list_(pa.float32()),
        log_prob=pa.float32(),
        tokens=pa.int32(),
    )


def run(
    draft: Draft,
    config: GradientsConfig,
    runtime: Runtime,
    *,
    prompts: pa.Table,
    responses: pa.Table,
) -> None:
    from bpo_data.policy import load_policy, policy_location

    model, revision = policy_location(draft.inputs["policy"].folder)
    policy = load_policy(model, revision, runtime.torch_device(), config.dtype)
    engine = engine_of(policy, config)
    usable = responses.filter(pc.equal(responses["state"], "ok"))
    owners = prompts.select(["prompt_id", "prompt"])
    draft.schema = draft.schema.set(
        1, pa.field("gradient", pa.list_(pa.float32(), engine.dim), nullable=False)
    )

    def make(part: pa.Table) -> pa.Table:
        rows = [row for row in encoded(policy, owners, part) if len(row) == 3]
        measured = engine.of([row[1] for row in rows], [row[2] for row in rows])
        names = pa.array([row[0] for row in rows], ID)
        columns_ = [names, vectors(measured.gradient), measured.log_prob, measured.tokens]
        return pa.table(columns_, schema=draft.schema).filter(pa.array(measured.finite))

    draft.map_parts(usable, make, PART_ROWS)
    measured = draft.read(["response_id", "tokens"])
    found = pc.is_in(usable["response_id"], measured["response_id"].combine_chunks())
    set_aside = [
        {"response_id": row[0], "reason": row[1] if len(row) == 2 else "not_finite"}
        for row in encoded(policy, owners, usable.filter(pc.invert(found)))
    ]
    draft.write_beside(pa.Table.from_pylist(set_aside, schema=SET_ASIDE), "set_aside.parquet")
    draft.note(len(set_aside), usable.num_rows, "responses set aside in set_aside.parquet")
    draft.facts |= {
        "responses": usable.num_rows,
        "set_aside": dict(Counter(row["reason"] for row in set_aside)),
        "tokens": int(measured["tokens"].to_numpy().sum()),
        "dim": engine.dim,
    }
    if measured.num_rows == 0:
        raise UserError(
            f"gradients: none of {usable.num_rows} responses could be measured "
            f"({draft.facts['set_aside']}). Use a model with a longer context, shorter responses, "
            f"or another chat template."
        )


def engine_of(policy: Policy, config: GradientsConfig) -> ResponseGradients:
    """The engine on this policy. Raises UserError for layers it cannot capture."""
    from bpo_data.gradients.engine import ResponseGradients

    try:
        return ResponseGradients(
            policy.model,
            rank=config.rank,
            dim=config.dim,
            seed=config.seed,
            layers=config.layers,
            batch_tokens=config.batch_tokens,
        )
    except ValueError as error:
        raise UserError(f"gradients.layers={config.layers}: {error}") from error


def encoded(
    policy: Policy, owners: pa.Table, part: pa.Table
) -> Iterator[tuple[str, list[int], list[int]] | tuple[str, str]]:
    """Each response's id with its tokens, or with the reason why it cannot be measured."""
    from bpo_data.policy import TemplateRefuses, encode

    asked = lookup(owners, "prompt_id", part["prompt_id"])["prompt"].to_pylist()
    rows = part.select(["response_id", "text"]).to_pylist()
    for row, prompt in zip(rows, asked, strict=True):
        try:
            tokens = encode(policy.tokenizer, prompt, row["text"])
        except TemplateRefuses:
            yield row["response_id"], "template_refuses"
            continue
        fits = sum(map(len, tokens)) <= policy.context
        yield (row["response_id"], *tokens) if fits else (row["response_id"], "too_long")
