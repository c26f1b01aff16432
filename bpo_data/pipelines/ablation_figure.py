"""A dot and an interval for each arm, as an SVG that stands by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from bpo_data.report.ablation import Compared

LEFT, WIDTH, ROW, TOP, FOOT = 140, 720, 22, 46, 30
COLOURS = {"better": "#0b6e4f", "worse": "#b3261e"}
"""Told apart by place too: right of zero, left of it; a tie stands across it in grey."""
INK, GREY, FAINT = "#1a202c", "#4a5568", "#e2e8f0"


def figure(world: str, against: str, rows: Sequence[Compared]) -> str:
    """Differences from ``against`` with 95 % intervals, in points, the best arm on top."""
    shown = [row for row in rows if row.minus is not None]
    step, low, high = axis([end for row in shown for end in ends(row)])
    height = TOP + ROW * len(shown) + FOOT

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 30) * (value - low) / (high - low), 1)

    title = escape(f"Points minus {against}, {world}: mean and 95 % interval over seeds")
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="sans-serif" font-size="12">',
        f'<title>{title}</title><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="22" font-size="14" fill="{INK}">{title}</text>',
        *grid(step, low, high, height - FOOT, x),
        *(dot(row, TOP + ROW * place + ROW // 2, x) for place, row in enumerate(shown)),
        "</svg>",
    ]
    return "\n".join(drawn) + "\n"


def ends(row: Compared) -> tuple[float, float]:
    """Of the interval; of one seed, which has none, the difference itself."""
    assert row.minus is not None
    if row.minus.count < 2:
        return row.minus.mean, row.minus.mean
    return row.minus.low, row.minus.high


def axis(values: Sequence[float]) -> tuple[float, float, float]:
    """(step, lowest, highest) of round numbers: four to ten steps that hold the values and 0."""
    low, high = min([0.0, *values]), max([0.0, *values])
    high = max(high, low + 0.01)
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * size for size in (1, 2, 5, 10) if span / (power * size) <= 9)
    return step, math.floor(low / step) * step, math.ceil(high / step) * step


def grid(
    step: float, low: float, high: float, bottom: int, x: Callable[[float], float]
) -> Iterator[str]:
    digits = max(0, -math.floor(math.log10(step)))
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        at_zero = abs(value) < step / 2
        text = "0" if at_zero else f"{value:+.{digits}f}"
        yield (
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{TOP - 8}" y2="{bottom}" '
            f'stroke="{GREY if at_zero else FAINT}"/>'
            f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="middle" '
            f'fill="{GREY}">{text}</text>'
        )


def dot(row: Compared, y: int, x: Callable[[float], float]) -> str:
    assert row.minus is not None
    colour = COLOURS.get(row.verdict, GREY)
    low, high = ends(row)
    return (
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="{INK}">{escape(row.arm)}</text>'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{x(row.minus.mean)}" cy="{y}" r="4" fill="{colour}"/>'
    )
