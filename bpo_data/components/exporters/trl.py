"""TRL's DPOTrainer, and Unsloth, which is TRL underneath."""

from __future__ import annotations

from typing import Any

from bpo_data.components.exporters.rows import Asked, Made, Pair, Pairwise, said
from bpo_data.tables import MSG, columns

PAIR = columns(prompt=MSG, chosen=MSG, rejected=MSG)


class Trl(Pairwise):
    """``prompt``, ``chosen``, ``rejected``, all three message lists: read by TRL's DPOTrainer.

    A prompt as plain text beside message lists crashes TRL from 1.9 on, names such as ``messages``
    or ``prompt_ids`` among other columns change what it does, and its own max_length is 1024.
    Where the chat template does not write the prompt as the beginning of the conversation, TRL lets
    the response begin where the two part (trl 1.16, trainer/dpo_trainer.py).
    """

    columns = PAIR
    max_length = 1024
    rule = (
        "TRL drops a pair whose prompt alone has max_length tokens or more, and cuts responses "
        "behind max_length."
    )

    def values(self, asked: Asked, pair: Pair) -> dict[str, Any]:
        return message_lists(asked, pair)

    def files(self, made: Made) -> dict[str, str]:
        return {"README.txt": readme(made)}


def message_lists(asked: Asked, pair: Pair) -> dict[str, Any]:
    """Prompt, chosen and rejected as message lists."""
    return {
        "prompt": asked.prompt,
        "chosen": [said(pair.chosen.text)],
        "rejected": [said(pair.rejected.text)],
    }


def readme(made: Made) -> str:
    test = ', eval_dataset=rows["test"]' if made.has_test else ""
    return (
        "For TRL's DPOTrainer (and Unsloth): prompt, chosen, rejected as message lists.\n"
        'rows = datasets.load_dataset("parquet", data_files='
        + files_of(made)
        + f")\nDPOTrainer(model, args=DPOConfig(max_length={made.longest or None}), "
        f'train_dataset=rows["train"]{test}, processing_class=tokenizer)\n'
    )


def files_of(made: Made, suffix: str = ".parquet") -> str:
    """The splits' files as ``load_dataset`` takes them."""
    splits = ("train", "test") if made.has_test else ("train",)
    return "{" + ", ".join(f'"{split}": "{split}{suffix}"' for split in splits) + "}"
