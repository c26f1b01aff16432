"""The words that tell a cluster from all others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bpo_data.tables import lot

SAMPLED = 10_000
"""Pairs, drawn by lot, whose words are counted, so that a large set does not take minutes."""
READ = 1_000
"""Characters of a text that are read."""
PRIOR = 100.0
"""Words that the prior weighs as much as: it draws rare words towards their share in all clusters.
Our choice."""
SURE = 1.96
"""Standard errors by which a word has to stand out to be named."""
LONGEST = 30
"""Characters; what is longer is seldom a word."""

# \w leaves out the marks that many scripts write vowels and accents with.
MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670"
    "\u0900-\u0dff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
WORD = re.compile(rf"(?:[^\W\d_]|[{MARKS}])+(?:['\u2019](?:[^\W\d_]|[{MARKS}])+)*")
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]{2,}"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def words(text: str) -> Iterator[str]:
    """The words of a text in lower case; runs of a script without spaces as pairs of characters."""
    for found in WORD.finditer(text[:READ].lower()):
        word, rest = found[0], 0
        for run in UNSPACED.finditer(word):
            if 1 < run.start() - rest <= LONGEST:
                yield word[rest : run.start()]
            yield from (run[0][place : place + 2] for place in range(len(run[0]) - 1))
            rest = run.end()
        if 1 < len(word) - rest <= LONGEST:
            yield word[rest:]


def log_odds(counts: np.ndarray, others: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """How far words stand out, in standard errors: three (words,) arrays -> (words,).

    The log-odds ratio of a word here against elsewhere with an informative Dirichlet prior, over
    its standard deviation (Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16 and 22).
    """
    here, there = counts + prior, others + prior
    ratio = np.log(here / (here.sum() - here)) - np.log(there / (there.sum() - there))
    return np.asarray(ratio / np.sqrt(1 / here + 1 / there))


def telling(texts: Sequence[str], groups: Sequence[Sequence[int]], most: int) -> list[list[str]]:
    """For each group, given as numbers of its texts, up to ``most`` words, the most telling first.

    A text counts once in each group that has it. The prior is the words' shares in all groups
    together, as heavy as ``PRIOR`` words. A word that stands in one text alone tells nothing.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    nothing: list[list[str]] = [[] for _ in groups]
    if len(groups) < 2 or not any(next(words(text), "") for text in texts):
        return nothing
    vectorizer = CountVectorizer(analyzer=words)
    counts = vectorizer.fit_transform(texts)
    names = vectorizer.get_feature_names_out()
    often = np.flatnonzero(counts.getnnz(axis=0) > 1)
    if len(often) < 2:
        return nothing
    ends = np.cumsum([0, *map(len, groups)])
    members = np.concatenate([np.asarray(group, dtype=np.int64) for group in groups])
    shape = (len(groups), len(texts))
    member_of: Any = csr_matrix((np.ones(len(members)), members, ends), shape=shape)
    of_group = (member_of @ counts)[:, often].toarray()
    total = of_group.sum(axis=0)
    prior = PRIOR * np.maximum(total, 1) / np.maximum(total, 1).sum()
    found = []
    for row in of_group:
        z = log_odds(row, total - row, prior)
        best = np.argsort(-z, kind="stable")[:most]
        found.append([str(names[often[word]]) for word in best if z[word] > SURE])
    return found


def by_lot(names: Sequence[str]) -> list[int]:
    """Places of at most ``SAMPLED`` names, drawn by lot, in order."""
    order = sorted(range(len(names)), key=lambda place: lot(0, "words", names[place]))
    return sorted(order[:SAMPLED])
