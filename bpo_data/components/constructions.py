"""Which of a prompt's pairs are drawn, and in what order.

A pair is a row with ``pair_id``, ``chosen_id``, ``rejected_id`` and ``margin``. Draws depend on the
seed and on ids alone, so neither the order of the source nor other prompts change them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from bpo_data.tables import lot

Pair = dict[str, Any]
Pool = Mapping[str, float]
"""Points of each of a prompt's distinct responses, by its id, on ``pair.scale``."""


class Construction(Protocol):
    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        """The pairs that fit this construction, in the order in which they are taken.

        ``pairs`` are those of one prompt that passed every filter, at least one; the first
        ``count`` are drawn, and ``pair.match_length`` exchanges them for later ones. ``pool`` also
        holds responses whose pairs were filtered out.
        """


class Lot:
    """All pairs, by lot."""

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        return by_lot(pairs, seed)


class BestWorst:
    """The response with the most points above the one with the fewest; ties by lot.

    Where a filter has left that pair out, the one with the widest margin of those left stands for
    it, of equal margins the one with the better chosen. Without ties that is one pair a prompt.
    """

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        def points(pair: Pair) -> tuple[float, float, float]:
            chosen, rejected = pool[pair["chosen_id"]], pool[pair["rejected_id"]]
            return chosen - rejected, chosen, -rejected

        widest = max(map(points, pairs))
        return by_lot((pair for pair in pairs if points(pair) == widest), seed)


class Adjacent:
    """Pairs of adjacent ranks: no response of the prompt has points between the two; by lot."""

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        place = {points: rank for rank, points in enumerate(sorted(set(pool.values())))}
        return by_lot(
            (
                pair
                for pair in pairs
                if place[pool[pair["chosen_id"]]] == place[pool[pair["rejected_id"]]] + 1
            ),
            seed,
        )


class Low:
    """The response with the most points above the one nearest to mu - ``deviations`` sigma.

    Where filters leave it in no pair, the response with the most points of those left. mu and sigma
    are the mean and the population's standard deviation of the prompt's points. Further pairs have
    the next nearest rejected; ties by lot. Xiao et al. 2025, "Finding the Sweet Spot" (arXiv
    2502.16825): better than the very worst response when many are sampled.
    """

    def __init__(self, deviations: float = 2.0) -> None:
        if not math.isfinite(deviations):
            raise ValueError("deviations must be a finite number")
        self.deviations = deviations

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        points = sorted(pool.values())
        target = statistics.fmean(points) - self.deviations * statistics.pstdev(points)
        best = max(pool[pair["chosen_id"]] for pair in pairs)
        found = by_lot((pair for pair in pairs if pool[pair["chosen_id"]] == best), seed)
        return sorted(found, key=lambda pair: abs(pool[pair["rejected_id"]] - target))


class Spread:
    """Margins spread evenly from the prompt's least to its greatest.

    That range is cut into ``count`` parts, a margin drawn uniformly from each, and the nearest
    pair not yet taken stands for it; ties by lot. The rest follow by lot.
    """

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        rest = by_lot(pairs, seed)
        if len(rest) <= count:
            return rest
        prompt, margins = rest[0]["prompt_id"], [pair["margin"] for pair in rest]
        low, part = min(margins), (max(margins) - min(margins)) / count
        taken = []
        for place in sorted(range(count), key=lambda part: lot(seed, "part", f"{prompt}/{part}")):
            target = low + part * (place + uniform(seed, "spread", f"{prompt}/{place}"))
            nearest = min(rest, key=lambda pair: abs(pair["margin"] - target))
            rest.remove(nearest)
            taken.append(nearest)
        return taken + rest


class Rso:
    """Pairs of responses kept by statistical rejection sampling, by lot.

    Liu et al. 2023 (arXiv 2309.06657), algorithm 1, with the prompt's pool as the samples of the
    policy: it turns them into about ``samples`` of a policy that is better by
    exp(points / ``temperature``). Points are on ``pair.scale``; the paper has 0.5 and 8 of 64.
    """

    def __init__(self, temperature: float = 0.5, samples: int = 8) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError("temperature must be a number above 0")
        if samples < 2:
            raise ValueError("samples must be at least 2, as a pair has two")
        self.temperature = temperature
        self.samples = samples

    def __call__(self, pool: Pool, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
        kept = accepted(pool, self.temperature, self.samples, seed)
        return by_lot((p for p in pairs if {p["chosen_id"], p["rejected_id"]} <= kept), seed)


def accepted(pool: Pool, temperature: float, samples: int, seed: int) -> set[str]:
    """Ids of ``samples`` responses of the pool, or all of a smaller one.

    Responses pass in an order by lot; each is accepted with probability
    exp((points - most) / temperature), ``most`` being that of those left when the pass began.
    """
    left = dict(sorted(pool.items(), key=lambda item: lot(seed, "rso", item[0])))
    kept: set[str] = set()
    turn = 0
    while left and len(kept) < samples:
        most = max(left.values())
        for name, points in list(left.items()):
            draw = uniform(seed, f"rso{turn}", name)
            if len(kept) < samples and draw < math.exp((points - most) / temperature):
                kept.add(name)
                del left[name]
        turn += 1
    return kept


def by_lot(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """The pairs in an order drawn by lot."""
    return sorted(pairs, key=lambda pair: lot(seed, "pair", pair["pair_id"]))


def uniform(seed: int, purpose: str, name: str) -> float:
    """A draw from [0, 1) that belongs to a name, as ``lot`` does."""
    return float(int(lot(seed, purpose, name)[:13], 16) / 16**13)


KINDS: dict[str, Callable[..., Construction]] = {
    "lot": Lot,
    "best_worst": BestWorst,
    "spread": Spread,
    "adjacent": Adjacent,
    "low": Low,
    "rso": Rso,
}
