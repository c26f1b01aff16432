"""The stages as a tree of lines: what each waits for, how it stands, what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bpo_data.pipelines.outlook import Standing
from bpo_data.words import ago, lasting, size

NAME = 17
"""Characters of the column that holds the tree, unless a name wants more."""


def lines(standings: Sequence[Standing], *, used: bool) -> Iterator[str]:
    """A heading and a line a stage; ``used`` adds when a run last needed it."""
    rows = {one.name: one for one in standings}
    branches = list(drawn(rows))
    width = max([NAME, *(len(prefix + name) + 1 for prefix, name in branches)])
    yield f"{'stage':<{width}}{'state':<8}{'time':>10}{'size':>9}  what"
    for prefix, name in branches:
        one = rows[name]
        about = "" if one.state == "kept" else "~"
        taken = "" if one.seconds is None else about + lasting(one.seconds)
        room = "" if one.bytes is None else about + size(one.bytes)
        what = one.why
        if used and one.used is not None:
            what += f"; last used {ago(one.used)}"
        if one.folder:
            what += f"  {one.folder}"
        yield f"{prefix + name:<{width}}{one.state:<8}{taken:>10}{room:>9}  {what}"


def drawn(rows: Mapping[str, Standing]) -> Iterator[tuple[str, str]]:
    """(branches, stage), each stage below the one it waits for. A stage that waits for several
    begins a tree of its own, as does one that waits for none; an only child is drawn beside its
    parent, not further in."""
    parents = {name: [one for one in row.after if one in rows] for name, row in rows.items()}
    children = {
        name: [other for other, above in parents.items() if above == [name]] for name in rows
    }

    def below(name: str, lead: str) -> Iterator[tuple[str, str]]:
        inside = children[name]
        if len(inside) == 1:
            yield lead, inside[0]
            yield from below(inside[0], lead)
            return
        for place, child in enumerate(inside):
            last = place == len(inside) - 1
            yield lead + ("└─ " if last else "├─ "), child
            yield from below(child, lead + ("   " if last else "│  "))

    for name in rows:
        if len(parents[name]) != 1:
            yield "", name
            yield from below(name, "")
