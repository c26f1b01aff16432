"""How varied the responses of a policy are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from bpo_data.report.words import UNSPACED

LENGTHS = (1, 2, 3)


def diversity(texts: Iterable[str]) -> dict[str, float | None] | None:
    """Shares of distinct n-grams and the entropy of words over all texts; None without a word.

    ``distinct_n`` is different n-grams over all n-grams, counted within texts and over all texts
    together (Li et al. 2016, arXiv 1510.03055, section 5.2), None where no text has n words;
    ``entropy`` is that of the words' frequencies, in bits. Words are what stands between white
    space, as written; in scripts without spaces, characters. More words lower ``distinct_n`` and
    raise ``entropy``, so ``words`` is given too.
    """
    counts: dict[int, Counter[tuple[str, ...]]] = {length: Counter() for length in LENGTHS}
    for text in texts:
        words = UNSPACED.sub(lambda run: f" {' '.join(run[0])} ", text).split()
        for length, seen in counts.items():
            seen.update(zip(*(words[start:] for start in range(length)), strict=False))
    total = counts[1].total()
    if not total:
        return None
    shares = [count / total for count in counts[1].values()]
    distinct = {
        f"distinct_{length}": round(len(seen) / seen.total(), 4) if seen else None
        for length, seen in counts.items()
    }
    entropy = -sum(share * math.log2(share) for share in shares)
    return {"words": total, **distinct, "entropy": round(entropy, 4)}
