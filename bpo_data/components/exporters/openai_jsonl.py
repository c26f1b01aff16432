"""Preference fine-tuning at OpenAI, Together, Fireworks."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from bpo_data.components.exporters.rows import Asked, Made, Pair, Pairwise, said
from bpo_data.tables import MSG, columns


class OpenAi(Pairwise):
    """``input.messages``, ``preferred_output``, ``non_preferred_output`` as JSON lines: read by
    OpenAI's preference fine-tuning and, in the same form, by Together and Fireworks.

    Each output is one assistant message. A turn of a tool has to name the call that it answers,
    which our messages do not keep, so conversations with one are left out. The provider's template
    and limit are not known here: lengths count what the target's context would cut.
    """

    columns = columns(
        input=pa.struct([pa.field("messages", MSG)]), preferred_output=MSG, non_preferred_output=MSG
    )
    suffix = ".jsonl"
    templated = False
    rule = (
        "The provider's limit decides; counted here are pairs that the target's context would cut, "
        "or whose prompt alone fills it."
    )

    def refusal(self, asked: Asked, pair: Pair) -> str:
        roles = {turn["role"] for turn in asked.prompt} - {"system", "user", "assistant"}
        return f"a turn of role {min(roles)} lacks what the format asks of it" if roles else ""

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return {
            "input": {"messages": asked.prompt},
            "preferred_output": [said(pair.chosen.text)],
            "non_preferred_output": [said(pair.rejected.text)],
        }

    def files(self, made: Made) -> dict[str, str]:
        test = " and test.jsonl as validation file" if made.has_test else ""
        return {
            "README.txt": (
                "For preference fine-tuning at OpenAI, Together or Fireworks: upload train.jsonl"
                f"{test}.\nAt OpenAI: client.files.create(file=open('train.jsonl', 'rb'), "
                "purpose='fine-tune'), then a fine-tuning job with method dpo.\n"
            )
        }
