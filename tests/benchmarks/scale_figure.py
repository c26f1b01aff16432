"""The table and the figure of ``scale``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.benchmarks.scale import Case

Rows = Sequence[Mapping[str, Any]]
PANELS = {
    "prompts": "prompts",
    "responses": "stored responses",
    "pairs": "pairs of 1,024 float16 numbers",
}
"""What a row is, by world."""
FIGURES = {
    "cpu": ("processor time a row, microseconds", 1e6),
    "memory": ("memory a row, kilobytes", 1e-3),
}
MARKERS = "osD^v"
LEAST = {"cpu": 0.01, "memory": 1e6}
"""Seconds and bytes below which a difference says nothing: drawn as this."""


def line(row: Mapping[str, Any]) -> str:
    """A case of one size, as it comes in."""
    return (
        f"{row['case']:15} {row['rows']:>9,} rows  {row['wall']:8.1f} s  {row['cpu']:8.1f} s CPU  "
        f"{row['memory'] / 1e6:8,.0f} MB more  {row['peak'] / 1e6:8,.0f} MB in all  "
        f"load {row['load']}"
    )


def table(rows: Rows, cases: Mapping[str, Case]) -> str:
    """A case a line in Markdown: seconds, and what a row takes, at each size."""
    return "\n".join(lines(rows, cases))


def lines(rows: Rows, cases: Mapping[str, Case]) -> Iterator[str]:
    yield "| case | rows | seconds | of processor | µs a row | memory, MB | bytes a row |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, case in cases.items():
        own = [row for row in rows if row["case"] == name]
        for place, row in enumerate(own):
            what = "" if place else f"`{name}`: {case.words}"
            yield (
                f"| {what} | {row['rows']:,} | {row['wall']:,.1f} | {row['cpu']:,.1f} "
                f"| {1e6 * row['cpu'] / row['rows']:,.0f} | {row['memory'] / 1e6:,.0f} "
                f"| {row['memory'] / row['rows']:,.0f} |"
            )


def draw(rows: Rows, cases: Mapping[str, Case], path: Path) -> None:
    """Processor time and memory a row over the number of rows, both axes logarithmic."""
    import matplotlib

    from bpo_data.report.figures import QUIET, RESOLUTION

    with matplotlib.rc_context(QUIET):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.subplots(len(FIGURES), len(PANELS), sharex="col", sharey="row")
        for down, key in enumerate(FIGURES):
            for across, world in enumerate(PANELS):
                own = {name: case for name, case in cases.items() if case.world == world}
                fill(axes[down, across], rows, own, key)
            axes[down, 0].set_ylabel(FIGURES[key][0])
        for across, what in enumerate(PANELS.values()):
            axes[-1, across].set_xlabel(what)
            axes[0, across].legend(frameon=False, fontsize=8)
        svg = path.suffix == ".svg"
        figure.savefig(path, dpi=RESOLUTION, metadata={"Date" if svg else "Software": None})


def fill(axes: Axes, rows: Rows, names: Iterable[str], key: str) -> None:
    """A line for each case, with the sizes and powers of ten as plain numbers on the axes."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    unit, sizes = FIGURES[key][1], set()
    for name, marker in zip(names, MARKERS, strict=False):
        own = [row for row in rows if row["case"] == name]
        sizes |= {row["rows"] for row in own}
        values = [unit * max(row[key], LEAST[key]) / row["rows"] for row in own]
        axes.loglog([row["rows"] for row in own], values, marker=marker, label=name)
    axes.grid(True, which="major", alpha=0.3)
    axes.set_xticks(sorted(sizes), [in_short(size) for size in sorted(sizes)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def in_short(size: int) -> str:
    """``10k``, ``1M``."""
    million = size >= 1_000_000
    return f"{size / 1e6:g}M" if million else f"{size / 1e3:g}k" if size >= 1000 else str(size)
