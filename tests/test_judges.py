"""Judges: what they may say, what they must not make up."""

from __future__ import annotations

import numpy as np
import pytest

from bpo_data.components.judges import GivenScores, Verifier
from bpo_data.components.judging import Item, Verdict
from bpo_data.components.preference import Preference, features, fold_of, preferred
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime
from bpo_data.stages.score import agreement

PROMPT = ({"role": "user", "content": "say something"},)


def item(text: str, group: str = "p", given: float | None = None, reference: str | None = None):
    return Item(PROMPT, text, group, reference, given)


def verdicts(judge, items, known=()):
    counted = []
    found = judge(items, known, Runtime(), counted.append)
    assert sum(counted) == len(items) == len(found)
    return found


def test_a_response_without_a_score_has_no_score_and_is_not_zero():
    one, other = verdicts(GivenScores(), [item("a", given=0.0), item("b")])
    assert (one.score, one.state) == (0.0, "ok")
    assert (other.score, other.state) == (None, "no_score")


def refuses(prompt, response, reference):
    if reference is None:
        raise ValueError("no reference")
    return float(response == reference), "compared"


def test_a_verifier_that_cannot_judge_leaves_null():
    judge = Verifier(f"{__name__}:refuses")
    found = verdicts(judge, [item("4", reference="4"), item("5", reference="4"), item("4")])
    assert [one.score for one in found] == [1, 0, None]
    assert found[2].state == "verifier_failed"
    assert found[2].reply == "no reference"


def test_an_unknown_verifier_is_named_with_its_setting():
    with pytest.raises(UserError, match=r"score\.options\.function=nowhere:mark"):
        Verifier("nowhere:mark")


def liked(groups: int) -> list[Item]:
    """Every chosen response is polite, every rejected one is rude; the rest is noise."""
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    rows = []
    for group in range(groups):
        for tone, score in (("thanks kindly", 1.0), ("go away", 0.0)):
            noise = " ".join(rng.choice(words, 8))
            rows.append(item(f"{noise} {tone}", f"g{group}", score))
    return rows


def test_the_fitted_ranker_learns_a_preference_it_can_then_apply():
    known = liked(60)
    fresh = [item("w1 w2 thanks kindly", "new"), item("w1 w2 go away", "new")]
    polite, rude = verdicts(Preference(), fresh, known)
    assert polite.score > 5.5 > rude.score
    assert all(1 <= one.score <= 10 for one in (polite, rude))


def test_the_fitted_ranker_judges_no_prompt_it_has_learnt_from():
    # A preference that holds in one prompt alone cannot be known to a ranker that never saw it.
    known = liked(60)
    secret = [item("zebra zebra", "odd", 1.0), item("quagga quagga", "odd", 0.0)]
    zebra, quagga = verdicts(Preference(), secret, [*known, *secret])
    assert zebra.score == pytest.approx(quagga.score, abs=1e-6)
    assert len({fold_of(f"g{n}", 5) for n in range(60)}) == 5


def test_the_fitted_ranker_equals_logistic_regression_on_differences():
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    known = liked(40)
    judge = Preference()
    texts = [one.text for one in known]
    rows = features(judge.vectorizer().fit(texts), texts)
    pairs = preferred(known)
    ours = judge.fit(rows, pairs)
    # The same model said the other way: each pair once, labels dealt out by turns.
    better, worse = np.array(pairs).T
    turn = np.arange(len(pairs)) % 2 == 0
    differences = [
        rows[b] - rows[w] if t else rows[w] - rows[b]
        for b, w, t in zip(better, worse, turn, strict=True)
    ]
    reference = LogisticRegression(C=2.0, fit_intercept=False, max_iter=1000)
    reference.fit(vstack(differences), turn.astype(int))
    np.testing.assert_allclose(ours, reference.coef_[0], rtol=1e-3, atol=1e-4)


def test_a_verdict_does_not_depend_on_what_else_is_judged():
    known = liked(30)
    text = item("w1 w2 thanks", "new")
    alone = verdicts(Preference(), [text], known)[0]
    others = [item(f"something else {number} entirely", "new") for number in range(30)]
    assert verdicts(Preference(), [*others, text], known)[-1] == alone


def test_nothing_to_learn_from_is_said():
    with pytest.raises(UserError, match="no preference to learn from"):
        verdicts(Preference(), [item("a")], [item("a", given=1.0)])


def test_preferences_stay_within_a_prompt_and_skip_ties():
    rows = [item("a", "p", 1), item("b", "p", 0), item("c", "q", 5), item("d", "p", 1), item("e")]
    assert sorted(preferred(rows)) == [(0, 1), (3, 1)]


def test_agreement_counts_ties_half_and_nulls_not_at_all():
    rows = [item("a", "p", 1), item("b", "p", 0), item("c", "q", 1), item("d", "q", 0)]
    rows += [item("e", "r", 1), item("f", "r", 0)]
    said = [Verdict(score, "ok", "") for score in (7, 3, 5, 5, None, 2)]
    assert agreement(rows, said) == 0.75
    assert agreement([item("a")], said[:1]) is None
