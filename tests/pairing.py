"""The pair stage alone, on responses in memory that all have a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.runtime import Runtime
from bpo_data.stages import pair
from bpo_data.stages.pair import PairConfig
from bpo_data.stages.score import OPINIONS


class Held:
    """An artifact in memory: a table, files beside it and the settings it was made with."""

    def __init__(
        self,
        table: pa.Table,
        beside: dict[str, pa.Table] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.whole = table
        self.beside = beside or {}
        self.manifest = {"settings": settings or {}}

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return self.whole.select(columns) if columns else self.whole

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self.beside[name].select(columns) if columns else self.beside[name]


def pool(prompts: dict[str, list[tuple[str, float]]]) -> list[dict[str, Any]]:
    """Rows of the responses table with a score, from each prompt's (text, score)."""
    return [
        {
            "prompt_id": name,
            "response_id": f"{name}/{number:02d}",
            "number": number,
            "text": text,
            "score": score,
        }
        for name, answers in prompts.items()
        for number, (text, score) in enumerate(answers)
    ]


def said(*opinions: tuple[str, str, float | None] | tuple[str, str, float | None, str]) -> pa.Table:
    """``opinions.parquet`` of (judge, response id, score), or with the id of its opponent."""
    names = ("judge", "response_id", "score", "against_id")
    rows = [dict(zip(names, (*opinion, None)[:4], strict=True)) for opinion in opinions]
    return pa.Table.from_pylist(rows, schema=OPINIONS)


def paired(
    folder: Path,
    rows: list[dict[str, Any]],
    config: PairConfig,
    opinions: pa.Table | None = None,
    settings: dict[str, Any] | None = None,
) -> Draft:
    """What the stage makes of these responses; the folder must be empty.

    ``settings`` are those of augment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    beside = {"opinions.parquet": said() if opinions is None else opinions}
    inputs: Any = {
        "gradients": Held(table),
        "scores": Held(table, beside),
        "responses": Held(table, settings=settings),
    }
    draft = Draft(folder, "pairs", pair.schema(config), inputs, "pair")
    pair.run(draft, config, Runtime(), responses=table.drop_columns("score"), scores=table)
    return draft
