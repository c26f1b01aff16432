"""``plan=true`` and ``stage=status``: how every stage stands, without doing anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpo_data.artifacts import Artifact
from bpo_data.errors import UserError, some
from bpo_data.llm.forecast import table
from bpo_data.pipelines import costs, tree
from bpo_data.pipelines.command import Command, account_line
from bpo_data.pipelines.likeness import Manifests, all_manifests
from bpo_data.pipelines.outlook import Standing, expectation, of_mirror, standing, totals
from bpo_data.pipelines.running import pushed
from bpo_data.pipelines.saying import Voice
from bpo_data.pipelines.steps import Step
from bpo_data.stages import EVERY
from bpo_data.words import size


def standings(command: Command) -> list[Standing]:
    """How each stage of a command stands; kept ones are put among what the command has."""
    known = all_manifests(command.shelf)
    return [standing_of(command, step, known) for step in command.steps]


def standing_of(command: Command, step: Step, known: Manifests) -> Standing:
    if any(key not in command.made for key in step.inputs.values()):
        return expectation(known, command.config, step, command.steps)
    work = command.work(step)
    found = standing(command.shelf, work, command.config, known, step, command.steps)
    missing = found.state not in ("kept", "refused")
    if missing and command.mirror and (there := command.mirror.manifest(work.name)):
        copy = Artifact(command.shelf.folder / work.name, there)
        command.keep(step, copy)
        return of_mirror(copy, command.mirror.url, step, command.steps)
    if found.state == "kept":
        artifact = command.shelf.find(work)
        assert artifact is not None, "it is kept"
        command.keep(step, artifact)
    return found


def plan(command: Command, voice: Voice) -> None:
    """Say what a run would make and why, what it would ask of servers, and what that takes.

    Raises UserError where a run would end at once, at what is there and cannot be used.
    """
    found = standings(command)
    for one in found:
        if one.state == "refused":
            raise UserError(one.why)
    for line in tree.lines(found, used=False):
        voice.line(line)
    for line in totals(found):
        voice.line(line)
    open_stages = [one.stage for one in found if one.state not in ("kept", "mirror")]
    expected = [
        forecast
        for step, one in zip(command.steps, found, strict=True)
        if one.state not in ("kept", "mirror")
        for forecast in command.expected(step)
    ]
    said = [
        *costs.unknown(open_stages, command.config, command.tables()),
        *costs.beyond(expected, command.config),
    ]
    if expected and not command.config.budget.prices:
        said.append("Money is unknown: name a file of prices with budget.prices=PATH.")
    for line in (*table(expected), *said):
        voice.line(line)
    sent = pushed(command, dry_run=True)
    if (
        command.config.export.push_to_hub
        and not sent
        and any(step.stage == "export" for step in command.steps)
    ):
        sent = [f"would push to {command.config.export.push_to_hub} once export is made"]
    for line in sent:
        voice.line(line)
    voice.note(stages=found, requests=expected, notes=[*totals(found), *said], push=sent)


def status(command: Command, voice: Voice) -> None:
    """Say how the stages stand, what is begun or in the making, and what lies on disk."""
    found = standings(command)
    for line in tree.lines(found, used=True):
        voice.line(line)
    for one in found:
        for note in one.notes:
            voice.line(f"{one.name}: {note}")
    for line in beside(command, found, voice):
        voice.line(line)
    voice.note(stages=found)


def beside(command: Command, found: list[Standing], voice: Voice) -> Iterator[str]:
    """What else is in the runs folder: other artifacts, the request store, the account."""
    shelf = command.shelf
    ours = {Path(one.folder).name for one in found if one.folder}
    others = [folder for folder in shelf.folders(EVERY) if folder.name not in ours]
    here = sum(one.bytes or 0 for one in found if one.state == "kept")
    room = sum(shelf.size(folder) for folder in others)
    voice.note(
        folder=str(shelf.folder),
        bytes=here,
        others={"artifacts": len(others), "bytes": room},
        accounts={},
    )
    if not found or not shelf.folder.exists():
        yield f"{shelf.folder} is not there yet."
        return
    kept = sum(one.state == "kept" for one in found)
    line = f"{kept} of {len(found)} stages kept, {size(here)} in {shelf.folder}"
    if others:
        line += (
            f"; {some(len(others), 'artifact')} of other settings, {size(room)} "
            f"(stage=clean removes those nobody used for {command.config.clean.days:g} days)"
        )
    yield line + "."
    store = command.runtime.store_file()
    for name, spent, lost in command.account():
        voice.note(accounts={name: spent}, store={"file": store, "bytes": store.stat().st_size})
        priced = bool(command.runtime.budget.prices)
        yield f"{account_line(name, spent, lost, priced)} ({store}, {size(store.stat().st_size)})"
