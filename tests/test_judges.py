"""Judges: what they may say, what they must not make up."""

from __future__ import annotations

import numpy as np
import pytest
from judged import item, judged

from bpo_data.components import judges, kinds
from bpo_data.components.judges import GivenScores, Verifier
from bpo_data.components.judging import Item, Judgement, Offline, Opinion, Verdict, evenly, sole
from bpo_data.components.preference import Preference, features, fold_of, preferred
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.stages.score import ScoreConfig, agreement


def verdicts(judge, items, known=()):
    return judged(judge, items, known).verdicts


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


class Longest(Offline):
    """A judge from outside the package: a character, a point."""

    name = "longest"
    judges_new = True

    def __call__(self, items: list[Item], known: list[Item], desk: Desk) -> Judgement:
        desk.done(len(items))
        return sole(self.name, [Verdict(float(len(one.text)), "ok", "") for one in items])


def test_a_judge_from_outside_the_package_is_named_by_its_place():
    judge = ScoreConfig(kind=f"{__name__}:Longest").judge()
    assert [one.score for one in verdicts(judge, [item("four"), item("seven!!")])] == [4, 7]
    problems = list(ScoreConfig(kind="no_such.place:Judge").problems())
    assert len(problems) == 1
    assert "score.kind=no_such.place:Judge cannot be imported" in problems[0]


def test_a_judge_with_one_opinion_an_item_says_in_it_what_its_verdict_says():
    found = judged(Verifier(f"{__name__}:refuses"), [item("4", reference="4"), item("4")])
    assert found.opinions == [
        Opinion(f"{__name__}:refuses", 0, 1.0, "ok", "compared", rationale="compared"),
        Opinion(f"{__name__}:refuses", 1, None, "verifier_failed", "no reference"),
    ]


def broken(prompt, response, reference):
    raise KeyError("a bug")


def test_a_bug_in_the_users_verifier_rises_with_the_prompt_it_met():
    with pytest.raises(KeyError) as caught:
        judged(Verifier(f"{__name__}:broken"), [item("4", group="3f2a")])
    assert "prompt 3f2a" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", judges.KINDS)
def test_an_option_that_a_kind_has_not_is_named(kind):
    (problem,) = kinds.problems(judges.KINDS, kind, {"colour": 1}, "score.kind")
    assert problem.startswith(f"score.options.colour is not an option of score.kind={kind}.")


@pytest.mark.parametrize(("steps", "items"), [(6, 3), (3, 6), (7, 5), (0, 4), (4, 0)])
def test_progress_comes_evenly_and_ends_at_all_items(steps, items):
    told = []
    step = evenly(told.append, steps, items)
    for number in range(steps):
        step(1)
        assert sum(told) == items * (number + 1) // steps
    assert sum(told) == items
