"""Figures for papers, as SVG and PNG: needs matplotlib, which the extra ``figures`` brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = (6.4, 4.0)
"""Inches."""
RESOLUTION = 200
"""Dots an inch of the PNG files."""
MOST = 20_000
"""Points of a map; the sample is that of the page."""
QUIET = {
    "svg.hashsalt": "bpo_data",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
"""Settings of matplotlib: equal data give equal files, and a dollar sign in a topic is a sign."""


def available() -> bool:
    return find_spec("matplotlib") is not None


def draw(
    path: Callable[[str], Path],
    table: pa.Table,
    drawn: pa.Table,
    depths: pa.Table,
    topics: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write every figure to ``path(name)``; the names, without those that have nothing to show.

    ``table`` holds all pairs, ``drawn`` those of the map, ``topics`` are ``evaluation.by_topic``'s.
    """
    import matplotlib

    with matplotlib.rc_context(QUIET):
        from matplotlib.figure import Figure

        figures: dict[str, Callable[[Axes], None]] = {
            "depths": lambda axes: depth_bars(axes, depths),
            "margins": lambda axes: margin_steps(axes, table),
        }
        if drawn.num_rows:
            sample = drawn.slice(0, MOST)
            figures["map_clusters"] = lambda axes: scatter(axes, sample, "cluster")
            figures["map_usefulness"] = lambda axes: scatter(axes, sample, "usefulness")
        if topics:
            figures["evaluation"] = lambda axes: topic_intervals(axes, topics)
        written = []
        for name, fill in figures.items():
            tall = max(WIDE[1], 0.28 * len(topics) + 1.2) if name == "evaluation" else WIDE[1]
            figure = Figure(figsize=(WIDE[0], tall), layout="constrained")
            fill(figure.subplots())
            for kind in ("svg", "png"):
                file = f"figures/{name}.{kind}"
                stamp: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
                figure.savefig(path(file), dpi=RESOLUTION, metadata=stamp)
                written.append(file)
    return written


def depth_bars(axes: Axes, depths: pa.Table) -> None:
    places = np.arange(depths.num_rows)
    for offset, name, label in (
        (-0.2, "prompts_before", "candidates"),
        (0.2, "prompts_kept", "kept"),
    ):
        axes.bar(places + offset, depths[name].to_numpy(), 0.4, label=label)
    axes.set_xticks(places, [str(depth) for depth in depths["depth"].to_pylist()])
    axes.set(xlabel="pairs of a prompt", ylabel="prompts")
    axes.legend(frameon=False)


def margin_steps(axes: Axes, table: pa.Table) -> None:
    """Margins of candidates and kept pairs over one set of bins."""
    margins, kept = table["margin"].to_numpy(), table["kept"].to_numpy()
    edges = np.histogram_bin_edges(margins, bins=30).tolist()
    axes.hist(margins, edges, histtype="step", label=f"{len(margins):,} candidates")
    axes.hist(margins[kept], edges, alpha=0.5, label=f"{int(kept.sum()):,} kept")
    axes.set(xlabel="margin", ylabel="pairs")
    axes.legend(frameon=False)


def scatter(axes: Axes, drawn: pa.Table, by: str) -> None:
    """The map: kept pairs large, others small and pale."""
    x, y, kept = (drawn[name].to_numpy() for name in ("x", "y", "kept"))
    values = drawn[by].to_numpy()
    colours: dict[str, Any] = {"c": values % 20 if by == "cluster" else values}
    colours["cmap"] = "tab20" if by == "cluster" else "viridis"
    low, high = (0, 19) if by == "cluster" else np.percentile(values, [2, 98])
    for side, size, alpha in ((~kept, 3, 0.3), (kept, 7, 0.9)):
        points = axes.scatter(
            x[side], y[side], s=size, alpha=alpha, linewidths=0, vmin=low, vmax=high,
            rasterized=len(x) > 5_000, **{**colours, "c": colours["c"][side]},
        )  # fmt: skip
    axes.set(xlabel="first principal component", ylabel="second principal component")
    if by != "cluster":
        assert axes.figure is not None
        axes.figure.colorbar(points, ax=axes, label=by)


def topic_intervals(axes: Axes, topics: Sequence[Mapping[str, Any]]) -> None:
    """Win rate of each topic with its 95 % interval; the line at one half is no difference."""
    order = sorted(topics, key=lambda row: row["win_rate"].mean)
    means = np.array([row["win_rate"].mean for row in order])
    ends = np.array([[row["win_rate"].low, row["win_rate"].high] for row in order])
    ends = np.clip(np.nan_to_num(ends, neginf=0, posinf=1), 0, 1)
    reach = np.abs(ends - means[:, None]).T
    axes.errorbar(means, np.arange(len(order)), xerr=reach, fmt="o", markersize=4)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set_yticks(np.arange(len(order)), [row["topic"][:40] for row in order])
    axes.set(xlabel="win rate, ties half", xlim=(0, 1))
