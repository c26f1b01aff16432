"""OpenRLHF's DPO and reward model training."""

from __future__ import annotations

from typing import Any

from bpo_data.components.exporters.rows import (
    CUT,
    DROPPED,
    KEPT,
    Asked,
    Made,
    Pair,
    Pairwise,
    Row,
    tokens,
)
from bpo_data.components.exporters.trl import PAIR, message_lists


class OpenRlhf(Pairwise):
    """TRL's three columns, read by OpenRLHF's RewardDataset with the flags in ``flags.txt``.

    Without ``--data.prompt_key prompt`` it takes ``chosen`` for the whole conversation and finds
    no prompt in it. It cuts the prompt's letters off the front of the conversation, whatever stands
    there, so pairs whose prompt is not its beginning are left out. ``--eval.split train`` is right
    for the test file: a file on its own has no other split. A template that does not end with the
    tokenizer's end token gets a space and that token (openrlhf 0.11.2, datasets/reward_dataset.py).
    """

    columns = PAIR
    max_length = 512
    rule = (
        "OpenRLHF silently drops a pair whose prompt has max_len - 2 tokens or more, and cuts at "
        "max_len, where it writes the end token over the last."
    )

    def refusal(self, asked: Asked, pair: Pair) -> str:
        sound = [one.tokens is None or one.tokens.prefix for one in (pair.chosen, pair.rejected)]
        return "" if all(sound) else NOT_PREFIX

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return message_lists(asked, pair)

    def fate(self, row: Row, longest: int) -> str:
        found = tokens(row)
        if found[0].prompt >= longest - 2:
            return DROPPED
        # Where the template writes no end token, it adds a space and that token: two, as a rule.
        return CUT if max(one.closed + 2 * (not one.eos) for one in found) > longest else KEPT

    def alike(self, row: Row, longest: int) -> bool:
        return super().alike(row, longest - 1)  # the last is the end token, whatever it was

    def files(self, made: Made) -> dict[str, str]:
        test = "--eval.dataset test.parquet --eval.split train " if made.has_test else ""
        length = f"--data.max_len {made.longest} " if made.longest else ""
        flags = (
            "--data.dataset train.parquet --data.dataset_split train "
            "--data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected "
            f"--data.apply_chat_template {length}{test}"
        )
        return {
            "flags.txt": flags.strip() + "\n",
            "README.txt": (
                "For OpenRLHF: prompt, chosen, rejected as message lists. In this folder:\n"
                "deepspeed --module openrlhf.cli.train_dpo $(cat flags.txt) "
                "--model.model_name_or_path MODEL\n"
            ),
        }


NOT_PREFIX = "the chat template does not write the prompt as the beginning of the conversation"
