"""Whole conversations, for torchtune and open-instruct."""

from __future__ import annotations

from typing import Any

from bpo_data.components.exporters.rows import Asked, Made, Pair, Pairwise, said
from bpo_data.components.exporters.trl import files_of
from bpo_data.tables import MSG, columns


class Conversations(Pairwise):
    """``chosen`` and ``rejected``, whole conversations that differ in the last message alone: read
    by torchtune's ``preference_dataset`` and open-instruct's ``preference_tulu`` transform.

    Both take everything but the assistant's turns for the prompt, earlier assistant turns not:
    those are trained on too, on both sides. torchtune cuts at max_seq_len (unset by default), where
    open-instruct also leaves pairs out of which the cut spares no response.
    """

    columns = columns(chosen=MSG, rejected=MSG)
    rule = (
        "Both cut conversations behind max_seq_len (torchtune) or max_seq_length (open-instruct); "
        "a pair whose prompt alone fills it teaches nothing and counts as dropped."
    )

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return {
            "chosen": [*asked.prompt, said(pair.chosen.text)],
            "rejected": [*asked.prompt, said(pair.rejected.text)],
        }

    def files(self, made: Made) -> dict[str, str]:
        return {
            "README.txt": (
                "For torchtune: dataset={_component_: torchtune.datasets.preference_dataset, "
                "source: parquet, data_files: train.parquet, split: train}\n"
                "For open-instruct or anything else: datasets.load_dataset("
                f'"parquet", data_files={files_of(made)})\n'
            )
        }
