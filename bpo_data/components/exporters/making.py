"""All formats of an export, made of its prompts as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from bpo_data.artifacts import Draft
from bpo_data.components.exporters import exporters
from bpo_data.components.exporters.balance import SAID, Checks, Tally
from bpo_data.components.exporters.measuring import Chunks, measured
from bpo_data.components.exporters.rows import Asked, Exporter, Row
from bpo_data.components.exporters.target import Target
from bpo_data.components.exporters.writing import Folder

TYPED = "a control token of the target tokenizer is typed in a text"


def write(
    draft: Draft,
    config: Any,
    target: Target | str,
    chunks: Chunks,
    prompts: int,
    pairs: int,
) -> None:
    """Write every format of ``export.formats`` and set ``facts['formats']`` and ``['target']``.

    ``target`` is a sentence where there is no tokenizer. TRL's balance is reckoned in any case.
    The chunks hold so many prompts and pairs together.
    """
    known, why = (target, "") if isinstance(target, Target) else (None, target)
    asked_for = exporters(config.formats)
    used = {**exporters(["trl"]), **asked_for}
    folders = {name: Folder(draft, name, one, config.seed) for name, one in asked_for.items()}
    tallies = {}
    for name, exporter in used.items():
        exporter.meet(known)
        tallies[name] = Tally(exporter, longest(exporter, config.max_length, known))
    checks = Checks()
    special = config.special_tokens
    for asked in chain.from_iterable(measured(draft, known, special, chunks, prompts)):
        checks.add(asked)
        for name, exporter in used.items():
            own = list(rows(exporter, asked, special))
            tallies[name].add(asked, own)
            for row in own if name in folders else ():
                folders[name].add(asked.split, row)
    for name, folder in folders.items():
        folder.close(tallies[name].longest, tallies[name].tags)
    tell(draft, config, known, why, tallies, checks, pairs)


def rows(exporter: Exporter, asked: Asked, special: str) -> Iterator[Row]:
    """A prompt's rows; those that no trainer with the target's template could take are refused."""
    for row in exporter.rows(asked):
        names = {asked.prompt_id, *(answer.response_id for answer in row.answers)}
        refused = next((one.refused for one in row.answers if one.refused), "")
        reason = refused if exporter.templated else ""
        if special == "leave_out" and names & asked.special:
            reason = TYPED
        yield Row(row.id, row.answers, reason=reason) if reason else row


def longest(exporter: Exporter, asked: int, target: Target | None) -> int:
    """Tokens a row may have: as asked, else the trainer's own, and no more than the model holds."""
    known = [one for one in (asked or exporter.max_length, target.context if target else 0) if one]
    return min(known, default=0)


def tell(
    draft: Draft,
    config: Any,
    target: Target | None,
    why: str,
    tallies: Mapping[str, Tally],
    checks: Checks,
    pairs: int,
) -> None:
    """Set the facts and say what a person should know."""
    draft.facts["formats"] = {name: tally.facts(why) for name, tally in tallies.items()}
    for name, tally in tallies.items():
        for words in tally.words(name, name in exporters(config.formats)):
            draft.say(words)
    if target is None:
        draft.facts["target"] = {"why": why}
        if config.formats:
            draft.say(f"lengths and special tokens of the formats are not checked: {why}")
        return
    draft.facts["target"] = {
        "tokenizer": target.name,
        "context": target.context,
        "special_tokens": config.special_tokens,
        **checks.found,
    }
    if config.formats:
        done = {
            "break": "pairs have a control token typed in a text; an invisible space in formats/ "
            "keeps it text",
            "keep": "pairs have a control token typed in a text, which trainers take for a real "
            "one; export.special_tokens=break keeps it text",
            "leave_out": "pairs have a control token typed in a text and are left out of formats/",
        }
        draft.note(checks.found["special_in_text"], pairs, done[config.special_tokens])
        for name, words in SAID.items():
            draft.note(checks.found[name], pairs, words)
