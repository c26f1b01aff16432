"""One low-rank projected gradient per response, at the SFT policy or that of an online round."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import disk, moments
from bpo_data.artifacts import Draft
from bpo_data.engines import Place, at
from bpo_data.errors import UserError
from bpo_data.policy import check_location, policy_location
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, columns

if TYPE_CHECKING:
    from bpo_data.gradients.engine import ResponseGradients
    from bpo_data.measuring import Aside, Measurer
    from bpo_data.policy import Policy

VERSION = 2
PART_ROWS = 256  # part of the format: batches never straddle a part
SET_ASIDE = pa.schema([(name, pa.string()) for name in ("response_id", "reason", "detail")])
STORES = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass
class GradientsConfig:
    rank: int = 32
    """Rank of the two-sided projection: a linear layer leaves rank * rank numbers. Our choice."""

    dim: int = 1024
    """Numbers kept per response after the layers are sketched together."""

    layers: str = "blocks"
    """``blocks`` (linear layers but the output head), ``all``, ``last:n`` (those of the last n
    blocks), or a regular expression of names."""

    dtype: str = "auto"
    """``auto`` (the model's own), ``float32`` or ``bfloat16``; sums are float32 always."""

    store: str = "float32"
    """How gradients are written: ``float32``, or ``float16`` in half the space, each row over a
    power of two of its own (column ``scale``) so that none is too large or too small for it."""

    reference: str = ""
    """What pair losses compare the policy with: empty (itself, as at the start of training),
    ``adapter_off`` (the model without the policy's PEFT adapters), or a folder or hub model with
    the policy's tokenizer, which lies in memory beside it. Costs a forward pass."""

    reference_revision: str = ""
    """Branch, tag or commit of a hub model as reference; empty means its main branch."""

    unprompted: bool = False
    """Measure each response's log-probability after an empty user message as well, for
    ``allocate.kind=ifd``. Costs a forward pass."""

    preconditioner: str = "none"
    """``none``, or ``adam``: each weight's gradient over the root of its second moment, of
    ``sft.keep_moments``. It costs what forming each response's weight gradients costs."""

    compile: bool = False
    """Run the model's blocks through torch.compile: less time per token after a slow start, which
    the stage tells, with other last bits."""

    batch_tokens: int = 8192
    """Tokens in one batch, each prompt's counted once."""

    seed: int = 0
    """Draws the projections, with each layer's name."""

    def problems(self) -> Iterator[str]:
        if min(self.rank, self.dim, self.batch_tokens) < 1:
            yield "gradients.rank, gradients.dim and gradients.batch_tokens must be at least 1."
        for name, choices in {
            "dtype": ("auto", "float32", "bfloat16"),
            "store": tuple(STORES),
            "preconditioner": ("none", "adam"),
        }.items():
            if getattr(self, name) not in choices:
                said = f"{', '.join(choices[:-1])} or {choices[-1]}"
                yield f"gradients.{name}={getattr(self, name)}: choose {said}."
        if self.layers.startswith("last:") and not re.fullmatch("last:0*[1-9][0-9]*", self.layers):
            yield f"gradients.layers={self.layers}: write last:2 for the last two blocks."
        try:
            re.compile(self.layers)
        except re.error as error:
            yield f"gradients.layers={self.layers} is no regular expression: {error}."
        if self.reference not in ("", "adapter_off"):
            try:
                check_location(self.reference, "gradients.reference")
            except UserError as error:
                yield str(error)
        elif self.reference_revision:
            yield "gradients.reference_revision is of a hub model: name it in gradients.reference."


def outside(config: GradientsConfig) -> dict[str, str]:
    """Digests of a local reference's files, so that a changed model is noticed."""
    return disk.folder_digests(config.reference)


def schema(config: GradientsConfig) -> pa.Schema:
    """A response's gradient is ``gradient`` times ``scale``; log-probabilities are in nats."""
    alone = {"unprompted_log_prob": pa.float32()} if config.unprompted else {}
    return columns(
        response_id=ID,
        gradient=pa.list_(STORES[config.store]),
        scale=pa.float32(),
        log_prob=pa.float32(),
        reference_log_prob=pa.float32(),
        tokens=pa.int32(),
        **alone,
    )


def run(
    draft: Draft,
    config: GradientsConfig,
    runtime: Runtime,
    *,
    prompts: pa.Table,
    responses: pa.Table,
) -> None:
    from bpo_data.measuring import set_aside

    usable = responses.filter(pc.equal(responses["state"], "ok"))
    owners = prompts.select(["prompt_id", "prompt"])
    # With workers this process only encodes, and leaves the GPUs to them.
    place = Place()
    device = place.device(runtime) if draft.engine.here else "cpu"
    measuring = Measuring(models_of(draft, config), config, runtime, owners)
    measurer = measuring.on(device, place)
    gradient = pa.list_(STORES[config.store], measurer.engine.dim)
    draft.schema = draft.schema.set(1, pa.field("gradient", gradient, nullable=False))
    draft.map_parts(usable, at(measurer) if draft.engine.here else measuring, PART_ROWS)
    kept = draft.read(["response_id", "tokens"])
    missing = pc.invert(pc.is_in(usable["response_id"], kept["response_id"].combine_chunks()))
    aside = [set_aside(row) for row in measurer.encoded(usable.filter(missing))]
    tell_what(draft, aside, usable.num_rows)
    tell_how(draft, config, runtime, measurer)
    draft.facts |= {
        "tokens": int(kept["tokens"].to_numpy().sum()),
        "dim": measurer.engine.dim,
    }
    if kept.num_rows == 0:
        raise UserError(
            f"gradients: none of {usable.num_rows} responses could be measured "
            f"({draft.facts['set_aside']}). Use a model with a longer context, shorter responses, "
            f"or another chat template."
        )


@dataclass(frozen=True)
class Models:
    """Where the policy and its reference are: (folder or hub name, revision)."""

    policy: tuple[str, str | None]
    reference: tuple[str, str]


def models_of(draft: Draft, config: GradientsConfig) -> Models:
    """The reference is the one in the settings, unless an online round brings one."""
    named = config.reference, config.reference_revision
    if "reference" in draft.inputs:
        model, revision = policy_location(draft.inputs["reference"].folder)
        named = model, revision or ""
    return Models(policy_location(draft.inputs["policy"].folder), named)


@dataclass(frozen=True)
class Measuring:
    """How a worker is set up to measure."""

    models: Models
    config: GradientsConfig
    runtime: Runtime
    owners: pa.Table
    """prompt_id and prompt of every response's prompt."""

    @property
    def reads(self) -> list[str]:
        (policy, _), (reference, _) = self.models.policy, self.models.reference
        beside = [str(moments.beside(policy))] if self.config.preconditioner == "adam" else []
        return [policy, *beside, *([] if reference == "adapter_off" else [reference])]

    def __call__(self, place: Place) -> Measurer:
        return self.on(place.device(self.runtime), place)

    def on(self, device: str, place: Place) -> Measurer:
        """The models on a device."""
        from bpo_data.measuring import Measurer, silence_of
        from bpo_data.policy import load_policy
        from bpo_data.reference import reference_of

        config = self.config
        (model, revision), (other, other_revision) = self.models.policy, self.models.reference
        policy = load_policy(place.here(model), revision, device, config.dtype)
        engine = engine_of(policy, config, place.here(model))
        reference = reference_of(place.here(other), other_revision, engine, device, config.dtype)
        silence = silence_of(policy) if config.unprompted else None
        half = config.store == "float16"
        return Measurer(policy, engine, reference, half, self.owners, silence)


def tell_what(draft: Draft, aside: list[Aside], responses: int) -> None:
    """Write down what could not be measured, and say how many for which reason."""
    rows = [row._asdict() for row in aside]
    draft.write_beside(pa.Table.from_pylist(rows, schema=SET_ASIDE), "set_aside.parquet")
    reasons = Counter(row.reason for row in aside)
    said = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    draft.note(len(aside), responses, f"responses set aside in set_aside.parquet: {said}")
    draft.facts |= {"responses": responses, "set_aside": dict(sorted(reasons.items()))}


def tell_how(draft: Draft, config: GradientsConfig, runtime: Runtime, measurer: Measurer) -> None:
    """Facts of how it was measured; a note when batches had to be smaller than asked for.

    Of several processes each tells of smaller batches by itself, on stderr.
    """
    import torch

    model = measurer.policy.model
    engines = filter(None, [measurer.engine, measurer.reference.engine])
    batch_tokens = min(engine.batch_tokens for engine in engines)
    if batch_tokens < config.batch_tokens:
        draft.say(
            f"gradients.batch_tokens={config.batch_tokens:,} did not fit in memory: it was lowered "
            f"to {batch_tokens:,}, which changes the last bits of a row and no more"
        )
    if measurer.engine.compiled and measurer.engine.compiled.seconds:
        seconds = measurer.engine.compiled.seconds
        draft.say(f"torch.compile took {seconds:.0f} s before it began to save time")
    how = draft.engine.facts
    if "device" not in how:  # workers of a cluster may have what this machine has not
        device = torch.device(
            model.device if draft.engine.here else runtime.torch_device(process=0)
        )
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        how = how | {"device": name}
    draft.facts |= how | {
        "shares_prompts": measurer.engine.shares,
        "batch_tokens": batch_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def engine_of(policy: Policy, config: GradientsConfig, model: str) -> ResponseGradients:
    """The engine on this policy, of the folder ``model``.

    Raises UserError for layers it cannot capture, and for moments or blocks that are not there.
    """
    from bpo_data.gradients.compiled import CompiledBlocks
    from bpo_data.gradients.engine import ResponseGradients

    scales = None
    if config.preconditioner == "adam":
        scales = moments.AdamScales(moments.beside(model), policy.model)
    try:
        if config.compile:
            CompiledBlocks(policy.model)
    except ValueError as error:
        raise UserError(f"gradients.compile=true: {error}. Use gradients.compile=false.") from error
    try:
        return ResponseGradients(
            policy.model,
            rank=config.rank,
            dim=config.dim,
            seed=config.seed,
            layers=config.layers,
            batch_tokens=config.batch_tokens,
            scales=scales,
            compile=config.compile,
        )
    except ValueError as error:
        raise UserError(f"gradients.layers={config.layers}: {error}") from error
