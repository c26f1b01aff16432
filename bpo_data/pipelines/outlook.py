"""How each stage stands and what a run would do, found out without doing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bpo_data.artifacts import Artifact
from bpo_data.errors import UserError
from bpo_data.pipelines import likeness
from bpo_data.pipelines.likeness import Manifests
from bpo_data.pipelines.steps import Step, direct
from bpo_data.shelf import PARTIAL, Shelf
from bpo_data.words import lasting, size
from bpo_data.work import Work

if TYPE_CHECKING:
    from bpo_data.pipelines.config import Config

STATES = {
    "kept": "made, and its settings and inputs are the same",
    "mirror": "kept in `runtime.mirror`, to be fetched",
    "to run": "not made with these settings and inputs",
    "begun": "an interrupted try left finished parts or a checkpoint",
    "making": "another process is making it",
    "refused": "there, but cut short, unreadable or of a newer version: the line says what to do",
    "waits": "depends on a stage that is not made yet",
}


@dataclass(frozen=True)
class Standing:
    """One stage of a command, as it stands."""

    stage: str
    state: str
    """A name in ``STATES``."""
    why: str
    """Why it would run; what came out where it is kept."""
    after: list[str]
    """The stages it waits for directly: those that no other of them waits for too; with rounds,
    by name and round."""
    rows: int | None = None
    seconds: float | None = None
    """What making it took; where it would run, what the like took, None for the first time."""
    bytes: int | None = None
    """Its size on disk, or that of the like."""
    folder: str | None = None
    made: str | None = None
    used: float | None = None
    """Seconds since a run last made or kept it."""
    notes: list[str] = field(default_factory=list)
    """What it said when it was made."""
    round: int = 0
    """The online round it belongs to, from 1; 0 outside rounds."""
    name: str = ""
    """The stage, and its round where it has one."""


def standing(
    shelf: Shelf, work: Work, config: Config, known: Manifests, step: Step, steps: Sequence[Step]
) -> Standing:
    """How a step stands whose inputs are all made."""
    expected = expectation(known, config, step, steps)
    try:
        artifact = shelf.find(work)
    except UserError as error:
        return replace(expected, state="refused", why=str(error))
    if artifact is not None:
        return of_kept(shelf, artifact, step, steps)
    partial = shelf.folder / f"{work.name}{PARTIAL}"
    folder = str(partial) if partial.exists() else None
    holder = shelf.holder(work)
    if holder:
        return replace(expected, state="making", why=holder, folder=folder)
    state = "begun" if shelf.begun(work) else "to run"
    return replace(expected, state=state, why=shelf.why(work), folder=folder)


def of_kept(shelf: Shelf, artifact: Artifact, step: Step, steps: Sequence[Step]) -> Standing:
    manifest = artifact.manifest
    return Standing(
        stage=step.stage,
        name=step.name,
        round=step.round,
        state="kept",
        why=outcome(artifact),
        after=direct(step, steps),
        rows=artifact.rows,
        seconds=manifest["seconds"],
        bytes=artifact.size,
        folder=str(artifact.folder),
        made=manifest["made"],
        used=shelf.unused_for(artifact.folder),
        notes=list(artifact.facts.get("notes", [])),
    )


def outcome(artifact: Artifact) -> str:
    """What came out, in a word or two."""
    return str(artifact.facts.get("result", f"{artifact.rows:,} rows"))


def of_mirror(artifact: Artifact, url: str, step: Step, steps: Sequence[Step]) -> Standing:
    """A step that would be fetched; how long that takes is not known."""
    return Standing(
        stage=step.stage,
        name=step.name,
        round=step.round,
        state="mirror",
        why=f"{outcome(artifact)}  {url}/{artifact.folder.name}",
        after=direct(step, steps),
        rows=artifact.rows,
        bytes=artifact.size,
        made=artifact.manifest["made"],
    )


def expectation(known: Manifests, config: Config, step: Step, steps: Sequence[Step]) -> Standing:
    """A step that waits for another, with the time and size of the artifact most like it."""
    before = direct(step, steps)
    like = likeness.like(known, step.stage, config)
    return Standing(
        stage=step.stage,
        name=step.name,
        round=step.round,
        state="waits",
        why=f"after {', '.join(before)}",
        after=before,
        rows=like.rows if like else None,
        seconds=like.seconds if like else None,
        bytes=like.bytes if like else None,
    )


def totals(standings: Sequence[Standing]) -> Iterator[str]:
    """What would run, in a sentence: stages, time and size as far as known."""
    coming = [one for one in standings if one.state == "mirror"]
    waiting = [one for one in standings if one.state not in ("kept", "mirror")]
    if coming:
        much = size(sum(one.bytes or 0 for one in coming))
        yield f"{len(coming)} of {len(standings)} stages would be fetched, {much}."
    if not waiting:
        if not coming:
            yield f"Nothing to do: all {len(standings)} stages are kept."
        return

    known = [one for one in waiting if one.seconds is not None]
    unknown = [one.name for one in waiting if one.seconds is None]
    parts = [f"{len(waiting)} of {len(standings)} stages would run"]
    if known:
        seconds = sum(one.seconds or 0.0 for one in known)
        room = sum(one.bytes or 0 for one in known)
        parts.append(f"about {lasting(seconds)} and {size(room)}, as the like took before")
    if unknown:
        parts.append(f"nothing like it was made of this source: {', '.join(unknown)}")
    yield "; ".join(parts) + "."
