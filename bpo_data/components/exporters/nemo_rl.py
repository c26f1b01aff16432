"""NVIDIA NeMo-RL's DPO and reward model training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

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

COMPLETION = pa.struct([pa.field("rank", pa.int64()), pa.field("completion", MSG)])


class NemoRl(Pairwise):
    """``context`` and two ``completions`` {rank, completion}, rank 0 preferred: read by NeMo-RL's
    PreferenceDataset.

    It writes every beginning of the conversation with the chat template, a system message alone
    too, so conversations are left out of which the template refuses a beginning. A pair that is too
    long stays in the batch with weight 0, which a count of rows does not show (NeMo-RL at 7ea279ab,
    data/processors.py and data/llm_message_utils.py).
    """

    columns = columns(context=MSG, completions=pa.list_(COMPLETION))
    suffix = ".jsonl"
    max_length = 1024
    rule = (
        "NeMo-RL gives a pair weight 0 when either conversation has more than "
        "max_total_sequence_length tokens; 1024 is its example's number."
    )

    def meet(self, target: Target | None) -> None:
        super().meet(target)
        self.known: dict[tuple[str, ...], str] = {}
        bos = target.tokenizer.bos_token if target else None
        probe = target.text([{"role": "user", "content": "probe"}], []) if target else None
        self.bos = int(bool(bos) and not str(probe).startswith(str(bos)))

    def refusal(self, asked: Asked, pair: Pair) -> str:
        roles = tuple(turn["role"] for turn in asked.prompt)
        if roles not in self.known:
            self.known[roles] = self.refused_beginning(roles)
        return self.known[roles]

    def refused_beginning(self, roles: tuple[str, ...]) -> str:
        """Why the template refuses a beginning of a conversation of these roles, if it does."""
        if not self.target:
            return ""
        turns = [{"role": role, "content": f"probe{place}"} for place, role in enumerate(roles)]
        for end in range(1, len(turns) + 1):
            try:
                written(self.target.tokenizer, turns[:end], tokenize=False)
            except TemplateRefuses as error:
                return f"NeMo-RL writes {' '.join(roles[:end])} on its own, and {error}"
        return ""

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        answers = (pair.chosen, pair.rejected)
        return {
            "context": asked.prompt,
            "completions": [
                {"rank": rank, "completion": [said(answer.text)]}
                for rank, answer in enumerate(answers)
            ],
        }

    def fate(self, row: Row, longest: int) -> str:
        # It adds the tokens of beginning and end where the template writes none.
        sizes = [self.bos + one.whole + (not one.eos) for one in tokens(row)]
        return DROPPED if max(sizes) > longest else KEPT

    def files(self, made: Made) -> dict[str, str]:
        lines = ["data:"]
        if made.longest:
            lines = ["policy:", f"  max_total_sequence_length: {made.longest}", *lines]
        lines += entry("train", "train")
        if made.has_test:
            lines += entry("validation", "test")
        return {
            "dataset.yaml": "\n".join(lines) + "\n",
            "README.txt": (
                "For NeMo-RL's PreferenceDataset: context, and completions with rank 0 preferred.\n"
                "Copy dataset.yaml into your configuration and run in this folder, or write whole "
                "paths into it:\nuv run examples/run_dpo.py --config your.yaml\n"
            ),
        }


def entry(use: str, split: str) -> list[str]:
    """One data set of a configuration; a file on its own has the split train, whatever its name."""
    return [
        f"  {use}:",
        "    dataset_name: PreferenceDataset",
        f"    data_path: {split}.jsonl",
        "    split: train",
    ]
