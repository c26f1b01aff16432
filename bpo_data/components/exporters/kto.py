"""TRL's KTOTrainer: single responses, each wanted or not."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from bpo_data.components.exporters.rows import Answer, Asked, Format, Made, Row, said
from bpo_data.components.exporters.trl import files_of
from bpo_data.tables import MSG, columns


class Kto(Format):
    """``prompt``, ``completion``, ``label``: read by TRL's KTOTrainer.

    Pairs at depth share responses, and a response may be chosen in one pair and rejected in
    another. Each distinct text of a prompt stands once, with the label that most of its pairs give
    it; one chosen as often as rejected says nothing and is left out as a tie. Rows come in an order
    drawn by lot: TRL un-pairs data as all chosen, then all rejected, and reads KTO data in file
    order, taking the responses of neighbours for its estimate of the divergence, which wants
    neighbours of different prompts and both labels.
    """

    unit = "examples"
    key = "response_id"
    columns = columns(prompt=MSG, completion=MSG, label=pa.bool_())
    max_length = 1024
    rule = (
        "TRL drops an example whose prompt alone has max_length tokens or more, and cuts responses "
        "behind max_length."
    )
    shuffled = True

    def rows(self, asked: Asked) -> Iterator[Row]:
        for answer, chosen, rejected in votes(asked):
            tags = ["in_both_roles"] if chosen and rejected else []
            if chosen == rejected:
                yield Row(answer.response_id, [answer], reason=TIE, tags=[*tags, "ties"])
                continue
            label = chosen > rejected
            values = {"prompt": asked.prompt, "completion": [said(answer.text)], "label": label}
            tags.append("wanted" if label else "unwanted")
            yield Row(answer.response_id, [answer], values, tags=tags)

    def files(self, made: Made) -> dict[str, str]:
        wanted, unwanted = (made.counts.get(name, 0) for name in ("wanted", "unwanted"))
        return {
            "README.txt": (
                "For TRL's KTOTrainer: prompt and completion as message lists, label true or "
                f"false; {wanted:,} true, {unwanted:,} false in the train split.\n"
                f'rows = datasets.load_dataset("parquet", data_files={files_of(made)})\n'
                f"KTOTrainer(model, args=KTOConfig(max_length={made.longest or None}), "
                'train_dataset=rows["train"], processing_class=tokenizer), with a batch of at '
                "least 2 on each device; weigh the labels with desirable_weight and "
                "undesirable_weight if their counts differ much.\n"
            )
        }


TIE = "chosen in as many pairs as it is rejected in, so it has no label"


def votes(asked: Asked) -> list[tuple[Answer, int, int]]:
    """Each distinct response of a prompt's pairs: how many choose it, how many reject it."""
    found: dict[str, tuple[Answer, int, int]] = {}
    for pair in asked.pairs:
        for answer, chosen in ((pair.chosen, 1), (pair.rejected, 0)):
            first, wins, losses = found.get(answer.text, (answer, 0, 0))
            found[answer.text] = (first, wins + chosen, losses + 1 - chosen)
    return list(found.values())
