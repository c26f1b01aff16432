"""Fill each kept prompt's pool of responses: the source's own first, then new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.artifacts import Draft
from bpo_data.engines import Make, Place
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk, asking_problems
from bpo_data.llm.endpoint import Endpoint, endpoint_problems
from bpo_data.policy import policy_location, round_of
from bpo_data.runtime import Runtime
from bpo_data.tables import ID, MSG, columns, lookup, lot, maybe
from bpo_data.work import HOW

if TYPE_CHECKING:
    from bpo_data.llm.requests import Request
    from bpo_data.policy import Policy

VERSION = 2
PART_ROWS = 512  # requests of the local client in one part; part of the format
CLIENTS = ("local", "openai", "replay")


@dataclass
class AugmentConfig:
    client: str = "local"
    """``local`` samples in process from the SFT policy (in later online rounds from the trained
    one), ``openai`` from any server that speaks OpenAI's chat API, ``replay`` adds nothing to the
    source's own responses."""

    responses: int = 6
    """Responses in each prompt's pool, the source's own counted. Our choice."""

    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy as it is."""

    top_p: float = 1.0
    """Nucleus sampling; 1 leaves nothing out."""

    max_tokens: int = 512
    """Tokens a response may have; longer ones are cut, marked ``truncated`` and not used."""

    longer: float = 2.0
    """A response that a server cut at ``max_tokens`` is asked for once more with so many times as
    many; 0 leaves it cut."""

    batch: int = 256
    """Responses sampled together by the local client."""

    model: str = ""
    """The server's name of the model, for ``openai``."""

    base_url: str = "https://api.openai.com/v1"
    """The server, for ``openai``: vLLM, SGLang, a vendor."""

    key_variable: str = field(default="OPENAI_API_KEY", metadata=HOW)
    """The environment variable that holds the server's key; the key is never written."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, such as ``{min_p: 0.1}``; null takes one out, for
    servers that refuse it: ``{max_tokens: null, max_completion_tokens: 512}``."""

    mode: str = field(default="live", metadata=HOW)
    """``live``, or ``batch``: through the server's batch endpoint, slower and often cheaper. The
    requests are the same, so either finds in the store what the other got."""

    retry: list[str] = field(default_factory=list)
    """States of replies to ask for again, such as ``[http_error,empty]``: each mention is one more
    round for the rows in that state, with another seed where the server had answered."""

    max_failed: float = field(default=0.01, metadata=HOW)
    """Share of requests that may fail for good (no answer, or none that can be read); the stage
    stops as soon as more have, and the same command later asks again for these alone."""

    seed: int = 0
    """With the prompt's id and the response's number it seeds each draw."""

    def problems(self) -> Iterator[str]:
        if self.client not in CLIENTS:
            yield f"augment.client={self.client}: choose {', '.join(CLIENTS)}."
        if self.client == "openai" and not self.model:
            yield "augment.model is empty: name the model that the server at augment.base_url has."
        if self.responses < 2:
            yield f"augment.responses={self.responses}: a pair needs at least 2."
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            yield "augment.temperature must be 0 or more and augment.top_p above 0, up to 1."
        if not 0 <= self.max_failed <= 1:
            yield f"augment.max_failed={self.max_failed}: a share lies from 0 to 1."
        if self.client == "openai":
            yield from endpoint_problems(self.base_url, self.key_variable, "augment")
        if self.max_tokens < 1 or self.batch < 1:
            yield "augment.max_tokens and augment.batch must be at least 1."
        if self.longer and self.longer <= 1:
            yield f"augment.longer={self.longer:g}: give a factor above 1, or 0 for no second try."
        yield from asking_problems(self.mode, self.retry, "augment")


def ready(config: AugmentConfig) -> None:
    """Raise UserError when the server's key is missing, before the stages ahead are made."""
    if config.client == "openai":
        Endpoint(config.base_url, config.key_variable, "augment").key()


def schema(config: AugmentConfig) -> pa.Schema:
    return columns(
        response_id=ID,
        prompt_id=ID,
        number=pa.int32(),
        text=pa.string(),
        author=pa.string(),
        state=pa.string(),
        tokens=maybe(pa.int32()),
    )


def run(
    draft: Draft,
    config: AugmentConfig,
    runtime: Runtime,
    *,
    prompts: pa.Table,
    selection: pa.Table,
) -> None:
    kept = lookup(prompts, "prompt_id", selection.filter(selection["kept"])["prompt_id"])
    wanted = pa.Table.from_pylist(list(wanted_rows(kept, config)), schema=WANTED)
    new = wanted.filter(pc.invert(wanted["given"])).num_rows
    if new and config.client == "local":
        sample_locally(draft, config, runtime, wanted)
    elif new:
        draft.write(pa.Table.from_pylist(ask_server(draft, config, runtime, wanted), draft.schema))
    else:
        draft.write(wanted)
    rows = draft.read(["state"])
    if not rows.num_rows:
        raise UserError(
            "augment: there is no response. augment.client=replay adds none to the source's own, "
            "and it has none; use another augment.client, or name the column of responses."
        )
    unusable = rows.num_rows - pc.sum(pc.equal(rows["state"], "ok")).as_py()
    draft.note(unusable, rows.num_rows, "responses cannot be used; they take no part in pairs")
    draft.facts |= {
        "prompts": kept.num_rows,
        "given": rows.num_rows - new,
        "new": new,
        "states": dict(sorted(Counter(rows["state"].to_pylist()).items())),
    }


WANTED = (
    schema(AugmentConfig()).append(pa.field("given", pa.bool_())).append(pa.field("prompt", MSG))
)


def wanted_rows(kept: pa.Table, config: AugmentConfig) -> Iterator[dict[str, Any]]:
    """One row per response of the pool: given ones whole, new ones with the text still empty."""
    for row in kept.select(["prompt_id", "prompt", "given"]).to_pylist():
        own = row["given"]
        total = len(own) if config.client == "replay" else max(config.responses, len(own))
        for number in range(total):
            given = own[number] if number < len(own) else None
            yield {
                "response_id": f"{row['prompt_id']}/{number:02d}",
                "prompt_id": row["prompt_id"],
                "number": number,
                "text": given["text"] if given else "",
                "author": given["author"] if given else author(config),
                "state": "ok" if given else "",
                "tokens": None,
                "given": given is not None,
                "prompt": row["prompt"],
            }


def author(config: AugmentConfig) -> str:
    return config.model if config.client == "openai" else "policy"


def row_seed(config: AugmentConfig, response_id: str, rounds: int = 0) -> int:
    """A seed that belongs to one response, below 2^31 as servers want it; after ``rounds`` rounds
    of training another one than before them."""
    purpose = f"augment after {rounds}" if rounds else "augment"
    return int(lot(config.seed, purpose, response_id)[:8], 16) >> 1


def sample_locally(draft: Draft, config: AugmentConfig, runtime: Runtime, wanted: pa.Table) -> None:
    """Sample from the policy, part by part; a row's text depends on its own seed alone."""
    folder = draft.inputs["policy"].folder
    rounds = round_of(folder)
    draft.map_parts(wanted, Sampling(policy_location(folder), rounds, config, runtime), PART_ROWS)
    draft.facts |= {"round": rounds + 1, **draft.engine.facts}


@dataclass(frozen=True)
class Sampling:
    """How a worker is set up to sample."""

    policy: tuple[str, str | None]
    """Folder or hub name, and revision."""
    rounds: int
    """Of training behind the policy."""
    config: AugmentConfig
    runtime: Runtime

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.policy[0],)

    def __call__(self, place: Place) -> Make:
        from bpo_data.policy import load_policy

        model, revision = self.policy
        policy = load_policy(place.here(model), revision, place.device(self.runtime), "auto")
        return partial(self.sampled, policy, place.progress)

    def sampled(self, policy: Policy, progress: Any, part: pa.Table) -> pa.Table:
        """The rows of a part, with texts."""
        from bpo_data.generation import sample

        config = self.config
        rows = part.to_pylist()
        new = [row for row in rows if not row["given"]]
        samples = sample(
            policy,
            [row["prompt"] for row in new],
            [row_seed(config, row["response_id"], self.rounds) for row in new],
            max_new_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            batch_rows=config.batch,
            progress=progress,
        )
        for row, drawn in zip(new, samples, strict=True):
            row |= {"text": drawn.text, "state": drawn.state, "tokens": drawn.tokens}
        return pa.Table.from_pylist(rows, schema=WANTED)


def requests_of(
    config: AugmentConfig, rows: list[dict[str, Any]]
) -> list[tuple[Endpoint, Request, int]]:
    """What the server is to be asked for these rows, with draws."""
    from bpo_data.llm.requests import Request

    endpoint = Endpoint(config.base_url, config.key_variable)
    return [
        (
            endpoint,
            Request(
                messages=row["prompt"],
                model=config.model,
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.max_tokens,
                seed=row_seed(config, row["response_id"]),
                extra=config.extra,
            ),
            row["number"],
        )
        for row in rows
    ]


def ask_server(
    draft: Draft, config: AugmentConfig, runtime: Runtime, wanted: pa.Table
) -> list[dict[str, Any]]:
    """Ask the server for every new response. What it has answered before is not asked again."""
    rows = wanted.to_pylist()
    new = [row for row in rows if not row["given"]]
    asked = requests_of(config, new)
    with draft.bar(len(asked), "replies") as bar:
        desk = Desk(
            *("augment", runtime, config.mode), shown=bar.set_postfix_str, lines=draft.lines
        )
        replies = desk.complete(
            [(request, draw) for _, request, draw in asked],
            asked[0][0],
            max_failed=config.max_failed,
            section="augment",
            on_done=bar.update,
            longer=config.longer,
            retry=config.retry,
        )
    for row, reply in zip(new, replies, strict=True):
        row |= {
            "text": reply.text,
            "state": reply.state,
            "tokens": reply.usage_completion,
        }
    desk.tell()
    draft.facts["requests"] = desk.facts()
    return rows
