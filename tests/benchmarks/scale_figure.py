"""The table and the figure of ``scale``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    yield "| stage | rows | seconds | of processor | µs a row | memory, MB | bytes a row |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, case in cases.items():
        own = [row for row in rows if row["case"] == name]
        for place, row in enumerate(own):
            what = f"`{case.stage}`: {case.words}" if not place else ""
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
        for down, (key, (label, unit)) in enumerate(FIGURES.items()):
            for across, (world, what) in enumerate(PANELS.items()):
                panel = axes[down, across]
                names = [name for name, case in cases.items() if case.world == world]
                for place, name in enumerate(names):
                    own = [row for row in rows if row["case"] == name]
                    panel.loglog(
                        [row["rows"] for row in own],
                        [unit * max(row[key], LEAST[key]) / row["rows"] for row in own],
                        marker=MARKERS[place % len(MARKERS)],
                        label=name,
                    )
                panel.grid(True, which="major", alpha=0.3)
                if not across:
                    panel.set_ylabel(label)
                if down:
                    panel.set_xlabel(what)
                else:
                    panel.legend(frameon=False, fontsize=8)
        svg = path.suffix == ".svg"
        figure.savefig(path, dpi=RESOLUTION, metadata={"Date" if svg else "Software": None})
