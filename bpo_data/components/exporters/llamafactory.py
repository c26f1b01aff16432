"""LLaMA-Factory's DPO and reward model training."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from bpo_data.components.exporters.rows import CUT, KEPT, Asked, Made, Pair, Pairwise, Row, tokens
from bpo_data.tables import columns

TURN = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


class LlamaFactory(Pairwise):
    """``conversations`` of {from, value} with ``chosen`` and ``rejected`` of one turn each, and
    ``dataset_info.json``: read by LLaMA-Factory's SharegptDatasetConverter.

    With ``chosen`` as a list it leaves ranking without a word and every pair is lost; an
    unfinished ``tags`` entry in dataset_info.json blanks the other tags, so there is none. Turns
    have to alternate, after at most one system message; others it skips with a warning, so they
    are left out here. It writes text with templates of its own unless ``template`` is unset
    (llamafactory 0.9.5, data/converter.py and data/processor/pairwise.py).
    """

    columns = columns(conversations=pa.list_(TURN), chosen=TURN, rejected=TURN)
    max_length = 2048
    rule = (
        "LLaMA-Factory drops no pair: one longer than cutoff_len loses the end of its responses, "
        "or of its prompt where that is the longer part, or of both."
    )

    def refusal(self, asked: Asked, pair: Pair) -> str:
        roles = [turn["role"] for turn in asked.prompt]
        roles = roles[1:] if roles[:1] == ["system"] else roles
        if "system" in roles:
            return "a system message stands after the first turn"
        if unknown := set(roles) - NAMES.keys():
            return f"there is no turn of role {min(unknown)}"
        asking = [role in ("user", "tool") for role in roles]
        if asking != [number % 2 == 0 for number in range(len(roles))] or len(roles) % 2 == 0:
            return "the turns of user and assistant do not alternate"
        return ""

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return {
            "conversations": [
                {"from": NAMES[turn["role"]], "value": turn["content"]} for turn in asked.prompt
            ],
            "chosen": {"from": "gpt", "value": pair.chosen.text},
            "rejected": {"from": "gpt", "value": pair.rejected.text},
        }

    def fate(self, row: Row, longest: int) -> str:
        return CUT if max(one.whole for one in tokens(row)) > longest else KEPT

    def alike(self, row: Row, longest: int) -> bool:
        chosen, rejected = tokens(row)
        start = chosen.prompt
        end = start + room(start, max(chosen.whole, rejected.whole) - start, longest)
        return chosen.ids[start:end] == rejected.ids[start:end]

    def files(self, made: Made) -> dict[str, str]:
        splits = ("train", "test") if made.has_test else ("train",)
        info = {
            f"bpo_{split}": {
                "file_name": f"{split}.parquet",
                "formatting": "sharegpt",
                "ranking": True,
                "columns": {
                    "messages": "conversations",
                    "chosen": "chosen",
                    "rejected": "rejected",
                },
            }
            for split in splits
        }
        test = " eval_dataset=bpo_test" if made.has_test else ""
        return {
            "dataset_info.json": json.dumps(info, indent=2) + "\n",
            "README.txt": (
                "For LLaMA-Factory, dataset_info.json beside the rows. In this folder:\n"
                "llamafactory-cli train your.yaml stage=dpo dataset_dir=. dataset=bpo_train"
                f"{test} cutoff_len={made.longest or self.max_length}\n"
            ),
        }


def room(prompt: int, response: int, longest: int) -> int:
    """Tokens that it leaves of a response, the longer of two (data/processor/processor_utils.py).

    The shorter of prompt and response stays whole where it fills less than half, else both shrink
    in proportion.
    """
    if 2 * response < longest:
        return response
    if 2 * prompt < longest:
        return min(response, longest - prompt)
    return min(response, int(longest * response / (prompt + response)))
