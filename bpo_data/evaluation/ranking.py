"""Which response of a pair a policy holds for likelier: the trained one's, and its reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.statistics import Estimate, share_by_prompt
from bpo_data.tables import lookup

if TYPE_CHECKING:
    from bpo_data.policy import Policy


def pair_accuracy(sft: Policy, trained: Policy, dataset: pa.Table) -> Estimate | None:
    """Share of held-out pairs in which training moved the chosen response up against the rejected.

    That is DPO's implicit reward accuracy: log-ratio to the SFT policy, chosen above rejected; a
    tie counts half, so that a policy that learnt nothing has 0.5.
    """
    import numpy as np

    from bpo_data.likelihood import log_probs

    rows = dataset.filter(pc.equal(dataset["split"], "test")).to_pylist()
    if not rows:
        return None
    ratio = {}
    for side in ("chosen", "rejected"):
        conversations = [(row["prompt"], row[side][0]["content"]) for row in rows]
        ratio[side] = log_probs(trained, conversations) - log_probs(sft, conversations)
    right = (np.sign(ratio["chosen"] - ratio["rejected"]) + 1) / 2
    return share_by_prompt(
        (row["prompt_id"], float(value)) for row, value in zip(rows, right, strict=True)
    )


def reference_ranking(
    dataset: pa.Table, pairs: pa.Table, gradients: pa.Table
) -> dict[str, Estimate | None]:
    """Share of pairs whose chosen response the SFT policy holds for likelier, a tie half.

    Likelier is the higher log-probability averaged over tokens: the length-normalised ranking
    accuracy of Chen et al. 2024 (arXiv 2405.19534, section 2). ``kept`` is over all pairs of the
    dataset, ``held_out`` over those of its test split, None where there is none. It reads
    ``log_prob`` and ``tokens`` of the gradients table and runs no model.
    """
    import numpy as np

    known = lookup(pairs, "pair_id", dataset["pair_id"].combine_chunks())
    average = []
    for side in ("chosen_id", "rejected_id"):
        rows = lookup(gradients, "response_id", known[side].combine_chunks())
        average.append(rows["log_prob"].to_numpy() / rows["tokens"].to_numpy())
    right = (np.sign(average[0] - average[1]) + 1) / 2
    held_out = pc.equal(dataset["split"], "test").to_numpy(zero_copy_only=False)
    prompts = np.array(dataset["prompt_id"].to_pylist(), dtype=object)

    def share(used: np.ndarray) -> Estimate | None:
        return share_by_prompt(zip(prompts[used], right[used].tolist(), strict=True))

    return {"held_out": share(held_out), "kept": share(np.ones_like(held_out))}
