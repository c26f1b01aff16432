"""The pair stage alone, on responses in memory that all have a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Draft
from bpo_data.runtime import Runtime
from bpo_data.stages import pair
from bpo_data.stages.pair import PairConfig


class Held:
    """An artifact that is a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.whole = table

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return self.whole.select(columns) if columns else self.whole


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


def paired(folder: Path, rows: list[dict[str, Any]], config: PairConfig) -> Draft:
    """What the stage makes of these responses; the folder must be empty."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    inputs: Any = {"gradients": Held(table)}
    draft = Draft(folder, "pairs", pair.schema(config), inputs, "pair")
    pair.run(
        draft,
        config,
        Runtime(),
        responses=table.drop_columns("score"),
        scores=table.select(["response_id", "score"]),
    )
    return draft
