"""All responses of a prompt with their scores, for rankers and reward models."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from bpo_data.components.exporters.rows import Asked, Format, Made, Row
from bpo_data.components.exporters.trl import files_of
from bpo_data.tables import ID, MSG, columns


class Listwise(Format):
    """One row a prompt: its ``responses`` with ``scores``, ``ranks`` and ``authors`` in the order
    of their numbers: for training of rankers and reward models on lists; no loader is presumed.

    All scored responses of the prompt, not those of the kept pairs alone. Rank 1 is best; equal
    scores share a rank and the next is counted on (1, 1, 3), so that a tie is no preference. The
    order of the list says nothing of quality.
    """

    unit = "lists"
    key = "prompt_id"
    columns = columns(
        prompt_id=ID,
        prompt=MSG,
        response_ids=pa.list_(pa.string()),
        responses=pa.list_(pa.string()),
        scores=pa.list_(pa.float32()),
        ranks=pa.list_(pa.int32()),
        authors=pa.list_(pa.string()),
    )
    templated = False
    lists = True
    rule = (
        "No trainer is presumed: a list is cut when one of its responses is longer than the "
        "longest length, and dropped when the prompt alone fills it."
    )

    def rows(self, asked: Asked) -> Iterator[Row]:
        answers = [one for one in asked.answers.values() if one.score is not None]
        scores = [float(one.score) for one in answers if one.score is not None]
        values = {
            "prompt_id": asked.prompt_id,
            "prompt": asked.prompt,
            "response_ids": [one.response_id for one in answers],
            "responses": [one.text for one in answers],
            "scores": scores,
            "ranks": ranks(scores),
            "authors": [one.author for one in answers],
        }
        yield Row(asked.prompt_id, answers, values)

    def files(self, made: Made) -> dict[str, str]:
        return {
            "README.txt": (
                "For rankers and reward models: one row a prompt with all its scored responses; "
                "rank 1 is best, equal scores share a rank.\n"
                f'rows = datasets.load_dataset("parquet", data_files={files_of(made)})\n'
            )
        }


def ranks(scores: list[float]) -> list[int]:
    """1 for the highest score; equal scores share the rank of the first of them."""
    return [1 + sum(other > score for other in scores) for score in scores]
