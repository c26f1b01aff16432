"""How the training went: curves of its log, drawn without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from bpo_data.artifacts import Artifact

CURVES = {
    "loss": "loss",
    "accuracy": "share of pairs whose reward is higher for the chosen response",
    "margin": "margin of rewards, chosen minus rejected, nats times beta",
    "chosen_over_reference": "log-ratio of chosen responses to the reference, nats",
}
"""Columns of the training log, and what they are called."""
WIDTH, HEIGHT = 300.0, 100.0
"""Of the drawing, in its own units."""


@dataclass(frozen=True)
class Curve:
    what: str
    """What is drawn, in words."""
    lines: list[str]
    """Points ``x,y x,y ...`` of each round, in units of the drawing; y grows downwards."""
    ends: list[float]
    """x at which each round but the last is over."""
    low: float
    high: float
    first: float
    last: float


def curves(inputs: Mapping[str, Artifact]) -> list[Curve]:
    """A curve for each figure of the log that has two finite values or more; over all rounds."""
    logs = [inputs[name].table() for name in rounds_of(inputs)]
    if any("step" not in log.column_names for log in logs):
        return []
    return [
        curve
        for name, what in CURVES.items()
        if (curve := curve_of(what, [points_of(log, name) for log in logs]))
    ]


def rounds_of(inputs: Mapping[str, Artifact]) -> list[str]:
    """The names of the trainings, in the order of their rounds: "trained 1" ... and "trained"."""
    earlier = [name for name in inputs if name.startswith("trained ")]
    return [*sorted(earlier, key=lambda name: int(name.split()[1])), "trained"]


Points = list[tuple[float, float]]


def points_of(log: pa.Table, name: str) -> Points:
    """(update, value) of each line of a log that has a finite value."""
    rows = zip(log["step"].to_pylist(), log[name].to_pylist(), strict=True)
    return [(step, value) for step, value in rows if value is not None and math.isfinite(value)]


def curve_of(what: str, rounds: Sequence[Points]) -> Curve | None:
    """The rounds one after the other, in one drawing; None where there is nothing to draw."""
    values = [value for points in rounds for _, value in points]
    if len(values) < 2:
        return None
    before, ends, shifted = 0.0, [], []
    for points in rounds:
        shifted.append([(before + step, value) for step, value in points])
        before += points[-1][0] if points else 0.0
        ends.append(before)
    low, high = min(values), max(values)
    spread = high - low or 1.0

    def place(step: float, value: float) -> str:
        return f"{WIDTH * step / before:.1f},{HEIGHT * (high - value) / spread:.1f}"

    return Curve(
        what=what,
        lines=[" ".join(place(*point) for point in points) for points in shifted if points],
        ends=[round(WIDTH * end / before, 1) for end in ends[:-1]],
        low=low,
        high=high,
        first=values[0],
        last=values[-1],
    )
