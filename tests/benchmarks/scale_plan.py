"""What ten million prompts would take: figures of ``scale`` times the rows, and what is assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

PROMPTS, DEPTH, PAIRS, SHARDS = 10_000_000, 8, 4, 24
"""Prompts, responses and pairs of each, and slices of the prompts that are run apart."""
GPUS, SPEED, WRITING = 64, 200e12, 12_500
"""GPUs; floating-point operations a second of each on a model's passes; tokens a second of each on
writing with a model of 8 billion parameters."""
PARAMETERS, ASKED, SAID, FORM, VERDICT = 8e9, 200, 250, 350, 60
"""Of policy and judge; tokens of a prompt, of a response, of a rubric and of a judge's reply."""
FLOOR, RATIO = 6, 0.23
"""Operations a parameter and token of a forward and backward pass, and the share of that with
which gradients of 8 responses and pairs come (The gradient engine)."""
REQUEST = 1.7e-3
"""Processor seconds of the client for a request (Requests to servers)."""
DIM, BYTES = 1024, 2
"""Numbers of a gradient, and bytes of each."""

Rows = Sequence[Mapping[str, Any]]


class Line(NamedTuple):
    """A stage of the plan."""

    stage: str
    rows: int
    case: str = ""
    """Whose figures stand for its processor time and memory; empty where none was measured."""
    gpu: float = 0.0
    """Seconds of one GPU."""
    requests: int = 0
    disk: float = 0.0
    """Bytes, where the artifact's are not measured."""


def plan() -> list[Line]:
    """The stages that grow with the prompts."""
    responses, pairs = PROMPTS * DEPTH, PROMPTS * PAIRS
    judged = responses * (ASKED + SAID + FORM + VERDICT) * 2 * PARAMETERS
    # The floor runs two sequences a pair, 8 pairs of 8 responses.
    floor = responses * 2 * (ASKED + SAID) * FLOOR * PARAMETERS
    trained = pairs / 2 * 2 * (ASKED + SAID) * (FLOOR + 2) * PARAMETERS
    return [
        Line("load", PROMPTS, "load"),
        Line("embed", PROMPTS, "embed"),
        Line("select", PROMPTS, "select"),
        Line("augment", responses, gpu=responses * SAID / WRITING, requests=responses),
        Line("score", responses, "score", judged / SPEED, responses),
        Line("gradients", responses, gpu=RATIO * floor / SPEED, disk=responses * DIM * BYTES),
        Line("pair", responses, "pair"),
        Line("cluster", pairs, "cluster"),
        Line("allocate", pairs, "allocate"),
        Line("export", responses, "export"),
        Line("train", pairs // 2, gpu=trained / SPEED),
    ]


def table(rows: Rows) -> str:
    """The plan in Markdown, from the figures measured at each case's two largest sizes."""
    return "\n".join(lines(rows))


def lines(rows: Rows) -> Iterator[str]:
    yield (
        "| stage | rows, millions | hours of one core | memory in one process, GB | in one of "
        f"{SHARDS}, GB | disk, GB | hours of {GPUS} GPUs |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for line in plan():
        own = [row for row in rows if row["case"] == line.case]
        cpu = memory = 0.0
        disk = line.disk
        if own:
            cpu, memory = (at(own, key, line.rows) for key in ("cpu", "memory"))
            disk = at(own, "bytes", line.rows)
            disk += at(own, "store", line.rows) if line.requests else 0
        cpu += line.requests * REQUEST
        cells = [
            f"{line.rows / 1e6:,.0f}",
            shown(cpu / 3600),
            shown(memory / 1e9),
            shown(at(own, "memory", line.rows // SHARDS) / 1e9),
            shown(disk / 1e9),
            shown(line.gpu / GPUS / 3600),
        ]
        yield f"| `{line.stage}` | {' | '.join(cells)} |"


def at(rows: Rows, key: str, count: int) -> float:
    """A figure at ``count`` rows, on the line through the two largest sizes; through 0 and the one
    there is where there are not two. It never falls below that of the largest size."""
    if not rows:
        return 0.0
    before, last = ([{"rows": 0, key: 0}, *sorted(rows, key=lambda row: row["rows"])])[-2:]
    slope = (last[key] - before[key]) / (last["rows"] - before["rows"])
    return float(last[key] + max(0.0, slope) * (count - last["rows"]))


def shown(value: float) -> str:
    """A rough figure; nothing where there is none."""
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else "< 0.1"
