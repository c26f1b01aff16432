"""How far length tells chosen from rejected, and a draw of pairs in which it tells less.

A length is the number of characters (Unicode code points) of a response's text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data.medians import Median
from bpo_data.tables import lookup, lot

Pair = dict[str, Any]
"""A row with ``chosen_length`` and ``rejected_length``."""


def side(pair: Pair) -> int:
    """1 where the chosen response is the longer one, -1 where it is the shorter, 0 in between."""
    chosen, rejected = pair["chosen_length"], pair["rejected_length"]
    return int(chosen > rejected) - int(chosen < rejected)


def alike(pair: Pair, ratio: float) -> bool:
    """Whether the longer response is at most ``ratio`` times as long as the shorter; 0: always."""
    shorter, longer = sorted((pair["chosen_length"], pair["rejected_length"]))
    return not ratio or longer <= ratio * shorter


def lengths_of(pairs: Sequence[Pair]) -> np.ndarray:
    """Lengths of chosen and rejected, (n, 2) int64."""
    lengths = [(pair["chosen_length"], pair["rejected_length"]) for pair in pairs]
    return np.array(lengths, dtype=np.int64).reshape(-1, 2)


def characters(pairs: pa.Table, responses: pa.Table) -> np.ndarray:
    """Lengths of chosen and rejected of rows of the pairs table, (n, 2) int64."""
    texts = responses.select(["response_id", "text"])
    sides = [
        pc.utf8_length(lookup(texts, "response_id", pairs[name])["text"]).to_numpy()
        for name in ("chosen_id", "rejected_id")
    ]
    return np.stack(sides, axis=1).astype(np.int64)


class Bias:
    """What length says of pairs, which come some at a time; ``folder`` holds what memory does not.

    ``longer_share`` is the share of pairs whose chosen response is the longer one, a tie half: 0.5
    is no preference. ``median_ratio`` is that of chosen over rejected, an empty text counted 1.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.pairs = self.longer = self.tied = 0
        self.characters = np.zeros(2, np.int64)
        self.ratio = Median(folder)

    def add(self, lengths: np.ndarray) -> None:
        """Lengths of chosen and rejected, (n, 2)."""
        chosen, rejected = lengths.T
        self.pairs += len(lengths)
        self.longer += int((chosen > rejected).sum())
        self.tied += int((chosen == rejected).sum())
        self.characters += lengths.sum(axis=0)
        self.ratio.add(np.maximum(chosen, 1) / np.maximum(rejected, 1))

    def facts(self) -> dict[str, Any]:
        """There are pairs."""
        chosen, rejected = (int(one) / self.pairs for one in self.characters)
        return {
            "pairs": self.pairs,
            "chosen_longer": self.longer,
            "equally_long": self.tied,
            "longer_share": round((self.longer + self.tied / 2) / self.pairs, 4),
            "mean_chosen": round(chosen, 1),
            "mean_rejected": round(rejected, 1),
            "median_ratio": round(self.ratio.value(), 3),
        }


def bias(lengths: np.ndarray) -> dict[str, Any]:
    """The facts of ``Bias`` for lengths of chosen and rejected, (n, 2), n > 0."""
    found = Bias()
    found.add(lengths)
    return found.facts()


def first_of_each(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The first ``count`` pairs of either kind: all that ``evened`` can use of a prompt's rest."""
    return [
        pair
        for kind in (1, -1)
        for pair in [other for other in pairs if side(other) == kind][:count]
    ]


def evened(
    drawn: Mapping[str, Sequence[Pair]], spare: Mapping[str, Sequence[Pair]], seed: int
) -> tuple[dict[str, list[Pair]], int]:
    """As many pairs with the longer chosen as with the shorter, and how many were exchanged.

    ``drawn`` and ``spare`` hold each prompt's pairs in the order of its lot. Pairs of the kind
    there are too many of go, last drawn first, and the first spare ones of the other kind come,
    always within a prompt, so every prompt keeps its depth. The prompt with the most pairs too
    many gives next. It ends when the kinds differ by at most 1, or no prompt can exchange.
    """
    own = {name: sum(map(side, pairs)) for name, pairs in drawn.items()}
    surplus = sum(own.values())
    many = 1 if surplus > 0 else -1
    goes = {name: [p for p in reversed(drawn[name]) if side(p) == many] for name in drawn}
    comes = {name: [p for p in spare[name] if side(p) == -many] for name in drawn}
    moves = Counter[str]()
    queue = [
        (-many * own[name], lot(seed, "length", name), name)
        for name in drawn
        if goes[name] and comes[name]
    ]
    heapify(queue)
    while queue and moves.total() < abs(surplus) // 2:
        level, draw, name = heappop(queue)
        moves[name] += 1
        if moves[name] < min(len(goes[name]), len(comes[name])):
            heappush(queue, (level + 2, draw, name))
    after = {}
    for name, pairs in drawn.items():
        gone = {pair["pair_id"] for pair in goes[name][: moves[name]]}
        stay = [pair for pair in pairs if pair["pair_id"] not in gone]
        after[name] = stay + comes[name][: moves[name]]
    return after, moves.total()
