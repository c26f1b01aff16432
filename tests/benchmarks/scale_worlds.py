"""What goes through the stages in ``scale``: a runs folder, made up to the stage that is measured.

Stages before it are run as they are, but for gradients and, in the world of pairs, pairs: theirs
are drawn from a seed and put on the shelf under the name that the pipeline looks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bpo_data.artifacts import Draft
from bpo_data.llm.replies import Reply
from bpo_data.llm.requests import keyed
from bpo_data.llm.store import RequestStore
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.running import Run
from bpo_data.pipelines.saying import Voice
from bpo_data.pipelines.steps import Step
from bpo_data.runtime import prepare
from bpo_data.stages import gradients, pair
from bpo_data.stages.score import items_of
from bpo_data.tables import Message

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts_50k.parquet"
DEPTH = 8
"""Responses of a prompt, and pairs of a prompt where pairs are drawn."""
DIM, SMALL = 1024, 16
"""Numbers of a gradient: where they are clustered, and where pairs alone need them."""
CENTRES = 100
FEW = 64
"""Responses of a world whose gradients and pairs are drawn, and of every world to warm up on."""
BLOCK = 20_000
"""Rows of the source written at once."""
WORDS, LETTERS = 4_000, "abcdefghijklmnopqrstuvwxyz"
ANSWER, QUESTION = 120, 40
"""Words of a response and of a prompt, on average."""


@dataclass(frozen=True)
class World:
    """Rows of one kind, and the settings under which they are run."""

    source: Callable[[Path, int], None]
    """Writes the file that ``load`` reads."""
    settings: Sequence[str] = ()
    whole: bool = True
    """Whether the source holds as many rows as the world; else it holds ``FEW``."""
    drawn: Mapping[str, Callable[[Draft, int], None]] = field(default_factory=dict)
    """Stages whose table is drawn, for so many rows, and not made."""


def put_in_place(folder: Path, world: World, stage: str, rows: int, more: Sequence[str]) -> Run:
    """A run whose every step before ``stage`` has its artifact, found or made."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.parquet"
    if not source.exists():
        world.source(source, rows if world.whole else FEW)
    words = [f"stage={stage}", "recipe=own_data", f"load.path={source}", "load.test_share=0"]
    words += ["select.pick=nearest", f"runtime.folder={folder / 'runs'}", "runtime.device=cpu"]
    words += [f"sft.model={model_of(folder.parent)}", *world.settings, *more]
    if not any(word.startswith("score.kind") for word in more):
        words += JUDGE
    asked = settings.read(words)
    prepare(asked.config.runtime)
    run = Run(asked, Voice("json"))
    for step in run.steps[:-1]:
        bring(run, step, world, rows)
    return run


def bring(run: Run, step: Step, world: World, rows: int) -> None:
    """Find the artifact of a step, draw it or make it."""
    draw, work = world.drawn.get(step.stage), run.work(step)
    found = run.shelf.find(work)
    if not found and draw:
        schema = step.kind.module.schema(run.section(step))
        found = run.shelf.make(
            work, step.kind.makes, schema, run.inputs(step), lambda draft: draw(draft, rows)
        )
    if found:
        run.keep(step, found)
        return
    if step.stage == "score":
        store_replies(run)
    run.bring(step)


def model_of(folder: Path) -> Path:
    """A small model with random weights and a tokenizer of the words used here."""
    path = folder / "model"
    if not path.exists():
        from bpo_data.policy import save_policy
        from bpo_data.scratch import Scratch, make_policy

        random = np.random.default_rng(0)
        said = [Message(role="user", content=text) for text in texts(random, 200, ANSWER)]
        save_policy(make_policy([said], Scratch(vocabulary=2048, positions=2048), 0), path)
    return path


def prompts_file(path: Path, rows: int) -> None:
    """The first prompts of the shared file, as they are."""
    pq.write_table(pq.read_table(PROMPTS, columns=["prompt"]).slice(0, rows), path)


def responses_file(path: Path, rows: int) -> None:
    """Rated responses, a row each, ``DEPTH`` of every prompt."""
    random = np.random.default_rng(1)
    kinds = {"prompt": pa.string(), "response": pa.string(), "score": pa.float32()}
    with pq.ParquetWriter(path, pa.schema(kinds)) as writer:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            asked = texts(random, -(-count // DEPTH), QUESTION)
            columns = {
                "prompt": np.repeat(asked, DEPTH)[:count],
                "response": texts(random, count, ANSWER),
                "score": random.integers(1, 11, count).astype(np.float32),
            }
            writer.write_table(pa.table(columns, schema=pa.schema(kinds)))


def texts(random: np.random.Generator, count: int, mean: int) -> list[str]:
    """Words as frequent as Zipf's law has them, their number log-normal."""
    own = np.random.default_rng(2)
    letters = np.array(list(LETTERS))
    words = np.array(["".join(own.choice(letters, own.integers(2, 10))) for _ in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    lengths = random.lognormal(np.log(mean) - 0.18, 0.6, count).clip(2, 8 * mean).astype(int)
    drawn = words[random.choice(WORDS, lengths.sum(), p=frequency / frequency.sum())]
    return [" ".join(own) for own in np.split(drawn, np.cumsum(lengths)[:-1])]


def ids(first: int, count: int) -> list[str]:
    """Response ids of ``count`` responses, ``DEPTH`` of a prompt."""
    rows = range(first, first + count)
    return [f"{row // DEPTH:016x}/{row % DEPTH:02d}" for row in rows]


def draw_gradients(draft: Draft, rows: int) -> None:
    """Gradients of made-up responses, each a centre of its prompt's and as much noise, float16."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((CENTRES, DIM), dtype=np.float32)
    for number, start in enumerate(range(0, rows, gradients.PART_ROWS)):
        names = ids(start, min(gradients.PART_ROWS, rows - start))
        around = np.repeat(random.integers(0, CENTRES, -(-len(names) // DEPTH)), DEPTH)
        made = random.standard_normal((len(names), DIM), dtype=np.float32)
        write_gradients(draft, names, made + centres[around[: len(names)]], number, random)


def draw_small_gradients(draft: Draft, rows: int) -> None:
    """Gradients of all responses that there are, few numbers each."""
    random = np.random.default_rng(3)
    names = draft.inputs["responses"].table(["response_id"])["response_id"].to_pylist()
    draft.facts |= {"tokens": 200 * len(names), "dim": SMALL, "set_aside": {}}
    for number, start in enumerate(range(0, len(names), gradients.PART_ROWS)):
        some = names[start : start + gradients.PART_ROWS]
        made = random.standard_normal((len(some), SMALL), dtype=np.float32)
        write_gradients(draft, some, made, number, random)


def write_gradients(
    draft: Draft, names: list[str], rows: np.ndarray, part: int, random: np.random.Generator
) -> None:
    kind = pa.list_(pa.float16(), rows.shape[1])
    draft.schema = draft.schema.set(1, pa.field("gradient", kind, nullable=False))
    flat = pa.array(rows.astype(np.float16).reshape(-1))
    tokens = random.integers(20, 400, len(names))
    log_prob = (-1.5 * tokens).astype(np.float32)
    table = pa.table(
        [
            pa.array(names),
            pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
            np.ones(len(names), np.float32),
            log_prob,
            log_prob,
            tokens,
        ],
        names=draft.schema.names,
    )
    draft.write(table, f"{draft.makes}-{part:05d}.parquet")


def draw_pairs(draft: Draft, rows: int) -> None:
    """``DEPTH`` pairs of every prompt of ``draw_gradients``."""
    random = np.random.default_rng(4)
    every = list(combinations(range(DEPTH), 2))
    of_prompt = sorted(every[at] for at in random.permutation(len(every))[:DEPTH])
    sides = [of_prompt[row % DEPTH] for row in range(rows)]
    owners = [f"{row // DEPTH:016x}" for row in range(rows)]
    both = list(zip(owners, sides, strict=True))
    points = random.integers(1, 6, (rows, 2)) + np.array([5, 0])
    columns: dict[str, Any] = {
        "pair_id": [f"{name}/{one:02d}>{other:02d}" for name, (one, other) in both],
        "prompt_id": owners,
        "chosen_id": [f"{name}/{one:02d}" for name, (one, _) in both],
        "rejected_id": [f"{name}/{other:02d}" for name, (_, other) in both],
        "score_chosen": points[:, 0],
        "score_rejected": points[:, 1],
        "margin": points[:, 0] - points[:, 1],
        "p_chosen": pa.nulls(rows, pa.float32()),
    }
    draft.write(pa.table(columns).cast(pair.schema(pair.PairConfig())))


def store_replies(run: Run) -> None:
    """Put the replies of the judge, if it asks a server, into the request store of the run."""
    random = np.random.default_rng(5)
    prompts, responses = (run.made[name].table() for name in ("prompts", "responses"))
    asked = run.config.score.judge().requests(items_of(prompts, responses))
    if not asked:
        return
    reasons = texts(random, 100, 12)
    with RequestStore(run.runtime.store_path()) as store, store.transaction():
        for key, _, text in keyed([one[1:] for one in asked], asked[0][0]):
            said = {"reason": reasons[random.integers(100)], "score": int(random.integers(1, 11))}
            store.put(key, text, Reply("ok", json.dumps(said), "stop", 400, 30))


RATED = (
    *("embed.options.dim=8", "select.share=1", "select.k=8", "sft.kind=given"),
    *("augment.client=replay", "pair.min_margin=0", "gradients.store=float16"),
)
JUDGE = (
    *("score.kind=rubric", "score.options.model=judge"),
    "score.options.base_url=http://127.0.0.1:9/v1",  # nobody is there
)
WORLDS = {
    "prompts": World(prompts_file, ("sft.kind=given",)),
    "responses": World(responses_file, RATED, drawn={"gradients": draw_small_gradients}),
    "pairs": World(
        responses_file,
        RATED,
        whole=False,
        drawn={"gradients": draw_gradients, "pair": draw_pairs},
    ),
}


def sizes(text: str) -> Iterator[int]:
    """``10k,1M`` as numbers."""
    for word in text.split(","):
        yield int(word.replace("k", "000").replace("M", "000000"))
