"""``stage=clean``: artifacts that no run of the last days needed, shown and then removed.

Every run notes which artifacts it made or kept, all those that its stages needed among them. What
nobody needed for ``clean.days`` goes. The request store, in which the paid answers are, never does:
what is made again finds them there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bpo_data.pipelines.saying import Voice
from bpo_data.shelf import LATEST, PARTIAL, Shelf
from bpo_data.stages import EVERY
from bpo_data.words import ago, size

DAY = 86_400.0
REMOVED = ".removed"
"""End of the name of a folder that is being removed."""


@dataclass
class Clean:
    """What ``stage=clean`` removes."""

    days: float = 30.0
    """Artifacts that no run made or kept in so many days are removed; 0 means all that is not in
    the making."""

    yes: bool = False
    """Remove without asking. Where nobody can be asked, off a terminal, nothing is removed
    without it."""

    def problems(self) -> Iterator[str]:
        if self.days < 0:
            yield f"clean.days={self.days:g}: give 0 or more days."


@dataclass(frozen=True)
class Removable:
    """One folder that would go."""

    name: str
    bytes: int
    used: float
    """Seconds since a run needed it."""


def removable(shelf: Shelf, days: float) -> list[Removable]:
    """Finished artifacts and interrupted ones that nobody needed for so long, oldest first."""
    found = [
        Removable(folder.name, shelf.size(folder), unused)
        for folder in shelf.folders(EVERY)
        if (unused := shelf.unused_for(folder)) >= days * DAY and not shelf.in_use(folder)
    ]
    return sorted(found, key=lambda one: (-one.used, one.name))


def clean(shelf: Shelf, settings: Clean, voice: Voice, *, plan: bool) -> None:
    """Show what would go, ask, remove. ``plan`` shows and nothing more."""
    found = removable(shelf, settings.days)
    everything = list(shelf.folders(EVERY))
    voice.note(removable=found, kept=len(everything) - len(found), removed=[])
    for one in found:
        voice.line(
            f"{size(one.bytes):>8}  last used {ago(one.used):<16}  {shelf.folder / one.name}"
        )
    room = size(sum(one.bytes for one in found))
    if not found:
        voice.line(
            f"Nothing to remove: all {len(everything):,} artifacts in {shelf.folder} were used "
            f"within {settings.days:g} days."
        )
        return
    voice.line(
        f"{len(found):,} of {len(everything):,} artifacts in {shelf.folder}, {room}, were not "
        f"used for {settings.days:g} days."
    )
    if plan or not (settings.yes or agreed(len(found), room)):
        voice.line("Nothing was removed." + ("" if plan else " clean.yes=true removes them."))
        return
    gone = remove(shelf, found, settings.days)
    voice.note(removed=gone)
    voice.line(f"Removed {len(gone):,} artifacts.")


def agreed(count: int, room: str) -> bool:
    """Whether the person at the terminal says yes; False where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"Remove these {count:,} artifacts, {room}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def remove(shelf: Shelf, found: Sequence[Removable], days: float) -> list[str]:
    """Remove them, each under its lock; those that somebody began to use meanwhile stay."""
    gone = []
    for one in found:
        folder = shelf.folder / one.name
        with shelf.alone(folder) as free:
            if free and folder.exists() and shelf.unused_for(folder) >= days * DAY:
                # Renamed first: a folder half removed must never look whole.
                going = folder.with_name(f"{one.name.removesuffix(PARTIAL)}{REMOVED}")
                folder.rename(going)
                shutil.rmtree(going)
                shelf.forget(folder)
                gone.append(one.name)
    for left in shelf.folders(EVERY, end=REMOVED):
        if left.name.endswith(REMOVED):  # of a clean that was killed
            shutil.rmtree(left, ignore_errors=True)
    for link in (shelf.folder / LATEST).glob("*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    return gone
