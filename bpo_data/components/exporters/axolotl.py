"""Axolotl's DPO training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bpo_data.components.exporters.rows import (
    DROPPED,
    KEPT,
    Asked,
    Made,
    Pair,
    Pairwise,
    Row,
    said,
    tokens,
)
from bpo_data.policy import TemplateRefuses, written
from bpo_data.tables import MSG, columns

if TYPE_CHECKING:
    from bpo_data.components.exporters.target import Target

ONE = MSG.value_type
PROBE = "probe7word"


class Axolotl(Pairwise):
    """``messages`` with ``chosen`` and ``rejected`` of one message, and ``dataset.yaml``: read by
    axolotl's ``chat_template.default`` for DPO.

    Any further column breaks it. It writes a response after a dummy question and looks for the
    response's text from the front: one that also stands in what the template writes before it
    (``user``, ``e``) drags that along, one whose outer spaces the template trims is reduced to a
    letter. Such pairs are left out (axolotl 0.19.0, prompt_strategies/dpo/chat_template.py).
    """

    columns = columns(messages=MSG, chosen=ONE, rejected=ONE)
    max_length = 512
    rule = (
        "Axolotl drops a pair of which either conversation has more than sequence_len tokens; it "
        "cuts nothing unless excess_length_strategy says so."
    )

    def meet(self, target: Target | None) -> None:
        super().meet(target)
        self.before = ""
        if target:
            dummy = [
                {"role": "user", "content": "[[dummy_message]]"},
                {"role": "assistant", "content": PROBE},
            ]
            try:
                text = str(written(target.tokenizer, dummy, tokenize=False))
            except TemplateRefuses:  # every row is refused for the same reason
                return
            self.before = text.partition(PROBE)[0]

    def refusal(self, asked: Asked, pair: Pair) -> str:
        for answer in (pair.chosen, pair.rejected):
            if answer.tokens and not answer.tokens.intact:
                return "the chat template changes a response, so axolotl would not find its text"
            # What follows the response cannot come first, and only its beginning can overlap.
            if (self.before + answer.text).find(answer.text) < len(self.before):
                return "axolotl would find a response's text in what the template writes before it"
        return ""

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return {
            "messages": asked.prompt,
            "chosen": said(pair.chosen.text),
            "rejected": said(pair.rejected.text),
        }

    def fate(self, row: Row, longest: int) -> str:
        return DROPPED if max(one.closed for one in tokens(row)) > longest else KEPT

    def files(self, made: Made) -> dict[str, str]:
        lines = [
            "rl: dpo",
            "chat_template: tokenizer_default",
            f"sequence_len: {made.longest or self.max_length}",
            "datasets:",
            *entry("train"),
        ]
        if made.has_test:
            lines += ["test_datasets:", *entry("test")]
        return {
            "dataset.yaml": "\n".join(lines) + "\n",
            "README.txt": (
                "For axolotl: copy dataset.yaml into your configuration and run in this folder, or "
                "write whole paths into it:\naxolotl train your.yaml\n"
            ),
        }


def entry(split: str) -> list[str]:
    """One data set of a configuration; a file on its own has the split train, whatever its name."""
    return [
        f"  - path: {split}.parquet",
        "    ds_type: parquet",
        "    split: train",
        "    type: chat_template.default",
        "    field_messages: messages",
        "    field_chosen: chosen",
        "    field_rejected: rejected",
    ]
