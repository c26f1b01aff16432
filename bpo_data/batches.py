"""Batches of pairs with further columns, and of whole lists, from TRL's collator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Collator:
    """TRL's batches with the rows' further columns, and whole lists of responses."""

    def __init__(self, inner: Any, columns: Sequence[str]) -> None:
        self.inner = inner
        self.columns = columns

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any]
        batch = self.with_lists(rows) if "list_ids" in rows[0] else self.inner(rows)
        for name in self.columns:
            batch[name] = torch.tensor([float(row[name]) for row in rows])
        return batch

    def with_lists(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch of the rows' pairs, best and worst of each list, and of what else is in them.

        ``listed`` (n, k) says in which row of the batch each response of a list is. The others
        make further pairs, each of one prompt; where they are odd the last one is there twice.
        """
        import torch

        pairs = [pair_of(row, row["chosen_ids"], row["rejected_ids"]) for row in rows]
        seats: list[dict[int, tuple[int, int]]] = []
        for number, row in enumerate(rows):
            best, worst = ends(row["list_scores"])
            seats.append({best: (number, 0), worst: (number, 1)})
            alone = [place for place in range(len(row["list_ids"])) if place not in (best, worst)]
            for first in range(0, len(alone), 2):
                both = alone[first : first + 2]
                seats[-1] |= {place: (len(pairs), side) for side, place in enumerate(both)}
                pairs.append(pair_of(row, *(row["list_ids"][place] for place in (both * 2)[:2])))
        longest = max(map(len, seats))
        listed = torch.zeros(len(rows), longest, dtype=torch.long)
        scores = torch.zeros(len(rows), longest)
        present = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, (row, taken) in enumerate(zip(rows, seats, strict=True)):
            for place, (pair, side) in taken.items():
                listed[number, place] = pair + side * len(pairs)
            scores[number, : len(taken)] = torch.tensor(row["list_scores"])
            present[number, : len(taken)] = True
        batch: dict[str, Any] = self.inner(pairs)
        return batch | {"listed": listed, "scores": scores, "present": present}


def pair_of(row: Mapping[str, Any], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """Two responses to a row's prompt, as TRL's collator takes them."""
    return {"prompt_ids": row["prompt_ids"], "chosen_ids": chosen, "rejected_ids": rejected}


def ends(scores: Sequence[float]) -> tuple[int, int]:
    """Places of the best and the worst of a list; of equal ones the first and the last."""
    places = range(len(scores))
    return max(places, key=lambda n: (scores[n], -n)), min(places, key=lambda n: (scores[n], -n))
