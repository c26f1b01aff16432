"""Formats that trainers read, one file each: what a kind writes is checked against its loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bpo_data.components.exporters.axolotl import Axolotl
from bpo_data.components.exporters.conversations import Conversations
from bpo_data.components.exporters.kto import Kto
from bpo_data.components.exporters.listwise import Listwise
from bpo_data.components.exporters.llamafactory import LlamaFactory
from bpo_data.components.exporters.nemo_rl import NemoRl
from bpo_data.components.exporters.openai_jsonl import OpenAi
from bpo_data.components.exporters.openrlhf import OpenRlhf
from bpo_data.components.exporters.rows import Exporter
from bpo_data.components.exporters.trl import Trl
from bpo_data.components.kinds import build
from bpo_data.errors import UserError

KINDS: dict[str, Callable[[], Exporter]] = {
    "trl": Trl,
    "kto": Kto,
    "openrlhf": OpenRlhf,
    "llamafactory": LlamaFactory,
    "axolotl": Axolotl,
    "nemo_rl": NemoRl,
    "openai": OpenAi,
    "conversations": Conversations,
    "listwise": Listwise,
}


def exporters(formats: Sequence[str]) -> dict[str, Exporter]:
    """The formats' exporters by the name of their folder; raises UserError for an unknown one.

    A format from outside, ``package.module:name``, is named by what stands after the colon.
    """
    made: dict[str, Exporter] = {}
    for kind in formats:
        name = kind.rpartition(":")[2]
        if name in made:
            raise UserError(
                f"export.formats={list(formats)} has {name} twice. Name each format once."
            )
        made[name] = build(KINDS, kind, {}, "export.formats")
    return made


def problems(formats: Sequence[str]) -> Iterator[str]:
    """What is wrong with ``export.formats``, found while settings are read."""
    told = []
    for asked in [*([kind] for kind in dict.fromkeys(formats)), formats]:  # each, then together
        try:
            exporters(asked)
        except UserError as error:
            told.append(str(error))
    yield from dict.fromkeys(told)
