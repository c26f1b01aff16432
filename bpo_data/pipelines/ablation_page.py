"""What an ablation says: a table of arms a world, with intervals over seeds; text and page."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import __version__, disk
from bpo_data.pipelines import config
from bpo_data.pipelines.ablation import Ablation, Outcome
from bpo_data.pipelines.ablation_figure import figure
from bpo_data.report import ablation as ablation_rows
from bpo_data.report.ablation import Compared
from bpo_data.statistics import Estimate

HEAD = (
    *("arm", "points", "minus {against}", "p", "win rate", "head", "tail"),
    *("pairs", "prompts", "judged", "updates", "chosen longer"),
)

COLUMNS = """\
Points are means, over held-out prompts, of the judge that evaluates; `head` and `tail` those of
the thirds of the topics that the pool asks most and least often. The difference is paired by seed:
both arms have that seed's data and SFT policy, and the same responses and gradients unless an arm's
settings ask for others. Intervals are 95 %, Student over seeds, each for one comparison; `p` is
Student's for the difference, corrected for all comparisons of the table (Holm 1979). `win rate` is
against the SFT policy, ties half; `judged` counts the responses that were judged to make the pairs;
`chosen longer` is the share of kept pairs whose chosen response is the longer, equal lengths half.
"""

LIMITS = """\
What it does not say: how much a rule gains on your data. In the recipes that come along policies
have 0.3 or 0.7 million weights, answers a few tokens, questions are generated, and the judge is a
program (with noise drawn for each response on its own, where a world says so; real judges also err
all in one direction, such as towards length). A tie here means that a difference, if there is one,
lies within the interval, in these worlds. What is the paper's (arXiv 2411.10914) is the method;
every size, and every rule's exact form, is ours.
"""


def compared(ablation: Ablation, outcomes: Sequence[Outcome]) -> list[Compared]:
    """Each arm of one world's outcomes, best mean points first."""
    return ablation_rows.compared([dataclasses.asdict(one) for one in outcomes], ablation.against)


def worlds_of(
    ablation: Ablation, outcomes: Sequence[Outcome]
) -> Iterator[tuple[str, list[Compared]]]:
    for name in ablation.all_worlds():
        yield name, compared(ablation, [one for one in outcomes if one.world == name])


def cells(row: Compared) -> tuple[str, ...]:
    return (
        row.arm,
        interval(row.points, 3),
        interval(row.minus, 3, sign=True),
        "" if row.p is None else f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001",
        f"{100 * row.mean('win_rate'):.1f} %",
        *(f"{row.mean(name):.2f}" for name in ("head", "tail")),
        *(f"{row.mean(name):,.0f}" for name in ("pairs", "prompts", "judged", "updates")),
        f"{100 * row.mean('chosen_is_longer'):.0f} %",
    )


def interval(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    """``4.31 [4.20, 4.42]``; of one seed there is no interval."""
    if estimate is None:
        return ""
    plus = "+" if sign else ""
    text = f"{estimate.mean:{plus}.{digits}f}"
    if estimate.count < 2:
        return text
    return f"{text} [{estimate.low:{plus}.{digits}f}, {estimate.high:{plus}.{digits}f}]"


def lines(ablation: Ablation, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The tables for a terminal."""
    head = tuple(name.format(against=ablation.against) for name in HEAD)
    for name, found in worlds_of(ablation, outcomes):
        if ablation.worlds:
            yield f"world {name}"
        table = [head, *map(cells, found)]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        for row in table:
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            yield "  ".join([row[0].ljust(widths[0]), *rest])


def page(
    ablation: Ablation, shared: Mapping[str, Any], outcomes: Sequence[Outcome], command: str
) -> str:
    """All that was found and all that is needed to make it again, in Markdown."""
    seeds = sorted({one.seed for one in outcomes})
    worlds = dict(worlds_of(ablation, outcomes))
    parts = [
        f"# {ablation.title}, {len(worlds)} world{'s'[: len(worlds) > 1]}, {len(seeds)} seeds",
        ablation.about.strip(),
        f"Made by\n\n    {command}\n\nwith {versions()}; seeds {seeds[0]} to {seeds[-1]}. Each "
        f"seed has data, an SFT policy and draws of its own; what arms of a world have in common "
        f"is measured once.",
        "## In short",
        *(in_short(ablation, name, found) for name, found in worlds.items()),
        for_a_user(ablation, worlds),
        LIMITS.strip(),
        "## Tables",
        COLUMNS.strip(),
        *(section(ablation, name, found) for name, found in worlds.items()),
        "## Settings",
        "\n".join(settings_of(ablation, shared)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(ablation: Ablation, name: str, found: Sequence[Compared]) -> str:
    """Which arms win, tie and lose in a world, in words that follow from its table alone."""
    groups: dict[str, list[Compared]] = {"better": [], "tie": [], "worse": []}
    for row in found:
        groups.get(row.verdict, []).append(row)
    counted = sum(map(len, groups.values()))
    if not counted:
        return f"**{name}**: one seed; there are no intervals to go by."
    sure = [row.arm for row in found if row.p is not None and row.p < 0.05]
    said = (
        f"**{name}**, {counted} arms beside `{ablation.against}`. Better by an interval that "
        f"excludes zero: {listed(groups['better'])}. Not to be told from it: "
        f"{listed(groups['tie'])}. Worse: {listed(groups['worse'])}. "
    )
    if not sure:
        return f"{said}No difference is left after correction for {counted} comparisons."
    names = ", ".join(f"`{arm}`" for arm in sure)
    return f"{said}After correction for {counted} comparisons, these still differ: {names}."


def listed(rows: Sequence[Compared]) -> str:
    return ", ".join(f"`{row.arm}` {interval(row.minus, 3, sign=True)}" for row in rows) or "none"


def for_a_user(ablation: Ablation, worlds: Mapping[str, Sequence[Compared]]) -> str:
    """Which arms were ever better or worse than the one they are compared with."""
    verdicts: dict[str, set[str]] = {}
    for found in worlds.values():
        for row in found:
            if row.verdict:
                verdicts.setdefault(row.arm, set()).add(row.verdict)
    if not verdicts:
        return ""

    def named(ever: str, never: str) -> str:
        arms = [arm for arm, seen in verdicts.items() if ever in seen and never not in seen]
        return ", ".join(f"`{arm}`" for arm in sorted(arms)) or "none"

    return (
        f"For a user, over all worlds of this page. Sometimes better than `{ablation.against}` and "
        f"never worse: {named('better', 'worse')}. Sometimes worse and never better: "
        f"{named('worse', 'better')}. Any other arm gave no clear reason to prefer or avoid it."
    )


def section(ablation: Ablation, name: str, found: Sequence[Compared]) -> str:
    """A world's table, and its figure by a link beside the page."""
    head = [one.format(against=ablation.against) for one in HEAD]
    table = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    table += ["| " + " | ".join(cells(row)) + " |" for row in found]
    shown = f"![Differences from {ablation.against} in {name}]({{figures}}{name}.svg)"
    return "\n".join([f"### {name}", "", *table, "", shown])


def settings_of(ablation: Ablation, shared: Mapping[str, Any]) -> Iterator[str]:
    base = config.read_recipe(ablation.base)
    yield f"- base recipe `{ablation.base}`: {said(base)}"
    yield f"- all arms: {said(shared)}"
    for name, own in ablation.all_worlds().items():
        yield f"- world `{name}`: {said(config.flat_arm(own))}"
    for arm, own in ablation.arms.items():
        yield f"- arm `{arm}`: {said(config.flat_arm(own))}"


def said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in values.items()) or "nothing of its own"


def versions() -> str:
    """Versions that figures may hang on; nothing that names a machine."""
    names = ("torch", "transformers", "trl", "faiss-cpu", "faiss-gpu", "scikit-learn", "numpy")
    found = [f"bpo_data {__version__}", f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def table_of(ablation: Ablation, outcomes: Sequence[Outcome]) -> pa.Table:
    """One row a world, arm and seed; its metadata name the arm that others are compared with."""
    ordered = sorted(outcomes, key=lambda one: (one.world, one.arm, one.seed))
    rows = pa.Table.from_pylist([dataclasses.asdict(one) for one in ordered])
    return rows.replace_schema_metadata({"against": ablation.against})


def write(
    folder: Path,
    ablation: Ablation,
    shared: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    command: str,
) -> Path:
    """The page with its figures and rows; the page's path, the card's where one is asked for."""
    text = page(ablation, shared, outcomes, command)
    disk.write_parquet(table_of(ablation, outcomes), folder / "outcomes.parquet")
    paths = [folder / "ablation.md"]
    if ablation.card:
        paths.append(Path(ablation.card))
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        for name, found in worlds_of(ablation, outcomes):
            drawn = figure(name, ablation.against, found)
            disk.write_bytes(drawn.encode(), path.with_name(f"{path.stem}_{name}.svg"))
        disk.write_bytes(text.replace("{figures}", f"{path.stem}_").encode(), path)
    return paths[-1]
