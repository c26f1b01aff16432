"""Sampling: a row's response is its own affair, and frequencies are the model's probabilities."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bpo_data import generation
from bpo_data.generation import Draw, Sample, cut, nucleus, sample, sorted_nucleus
from bpo_data.policy import Policy, prompt_tokens
from bpo_data.scratch import Scratch, make_policy
from bpo_data.tables import Message

if TYPE_CHECKING:
    import torch

TALKS = [
    [Message(role="user", content="add 12 and 7"), Message(role="assistant", content="= 19")],
    [Message(role="user", content="reverse a b"), Message(role="assistant", content="= b a")],
]
PROMPTS = [
    (Message(role="user", content="add " + " ".join(str(n) for n in range(length))),)
    for length in (1, 9, 3, 3, 12, 5, 2)
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    import torch

    torch.set_num_threads(1)  # two threads on shared cores are many times slower
    size = Scratch(vocabulary=300, width=16, layers=2, heads=2, hidden=32, positions=64)
    return make_policy(TALKS, size, seed=3)


def drawn(policy: Policy, prompts: list, seeds: list[int], **change: float) -> list[Sample]:
    settings = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "batch_rows": 4} | change
    return sample(policy, prompts, seeds, **settings)


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
def test_batch_size_changes_no_response(policy: Policy, batch_rows: int) -> None:
    seeds = list(range(len(PROMPTS)))
    assert drawn(policy, PROMPTS, seeds, batch_rows=batch_rows) == drawn(policy, PROMPTS, seeds)


def test_the_order_of_rows_changes_no_response(policy: Policy) -> None:
    seeds = [2**63 + row for row in range(len(PROMPTS))]
    there = drawn(policy, PROMPTS, seeds)
    assert drawn(policy, PROMPTS[::-1], seeds[::-1]) == there[::-1]


def test_another_seed_gives_another_response(policy: Policy) -> None:
    texts = [one.text for one in drawn(policy, [PROMPTS[0]] * 20, list(range(20)))]
    assert len(set(texts)) == 20


def first_token_shares(policy: Policy, temperature: float) -> np.ndarray:
    """The model's own probabilities of the first token after the first prompt."""
    import torch

    ids = torch.tensor([prompt_tokens(policy.tokenizer, PROMPTS[0])])
    with torch.no_grad():
        logits = policy.model(ids).logits[0, -1].double()
    return torch.softmax(logits / temperature, -1).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampled_frequencies_match_the_models_probabilities(
    policy: Policy, temperature: float
) -> None:
    import torch

    shares = first_token_shares(policy, temperature)
    scores = torch.log(torch.from_numpy(shares)).float()[None] * temperature
    seeds = list(range(20_000))
    alone = Draw(seeds, 1, temperature, 1.0)(torch.empty(0), scores.expand(len(seeds), -1))
    counts = np.bincount(alone.argmax(-1).numpy(), minlength=len(shares))
    often = shares * len(seeds) > 5
    expected = shares[often] * len(seeds)
    chi_square = ((counts[often] - expected) ** 2 / expected).sum()
    degrees = often.sum() - 1
    assert degrees > 100
    # Beyond 4 standard deviations of a chi-square the sampler is wrong, not unlucky.
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def test_the_first_token_of_a_response_is_the_one_its_number_falls_on(policy: Policy) -> None:
    shares = first_token_shares(policy, 1.0)
    seeds = list(range(30))
    for seed, one in zip(
        seeds, drawn(policy, [PROMPTS[0]] * 30, seeds, max_new_tokens=1), strict=True
    ):
        number = np.random.default_rng(seed).random(1)[0]
        token = int(np.searchsorted(shares.cumsum(), number, side="right"))
        assert one.text == policy.tokenizer.decode([token], skip_special_tokens=True)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    import torch

    shares = torch.tensor([[0.1, 0.5, 0.25, 0.15]], dtype=torch.float64)
    assert nucleus(shares, 0.5).tolist() == [[0.0, 0.5, 0.0, 0.0]]
    assert nucleus(shares, 0.51).tolist() == [[0.0, 0.5, 0.25, 0.0]]
    assert nucleus(shares, 0.95).tolist() == shares.tolist()


def spread(rows: int, words: int) -> torch.Tensor:
    """Probabilities from peaked to flat by row, rounded so that many are equal."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sharpness = torch.linspace(0, 8, rows)[:, None]
    logits = (torch.randn(rows, words, generator=generator) * sharpness).bfloat16()
    return torch.softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("first", [1, 2, 8, 64, 199, 500])
@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.9, 0.999])
def test_the_likeliest_tokens_alone_give_the_nucleus_of_the_full_sort(
    first: int, top_p: float
) -> None:
    import torch

    shares = spread(60, 200)
    assert torch.equal(nucleus(shares, top_p, first), sorted_nucleus(shares, top_p))


@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_rows_drawn_in_slices_are_those_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch, top_p: float
) -> None:
    import torch

    scores = spread(50, 3000).log().float()
    seeds = list(range(50))
    whole = Draw(seeds, 1, 1.0, top_p)(torch.empty(0), scores)
    monkeypatch.setattr(generation, "NUMBERS", 7 * generation.COPIES * 3000)
    assert torch.equal(Draw(seeds, 1, 1.0, top_p)(torch.empty(0), scores), whole)
    assert whole.isfinite().sum(dim=1).tolist() == [1] * 50


def test_tiny_top_p_and_zero_temperature_are_both_greedy(policy: Policy) -> None:
    seeds = [0] * len(PROMPTS)
    greedy = drawn(policy, PROMPTS, seeds, temperature=0.0)
    assert drawn(policy, PROMPTS, seeds, top_p=1e-9) == greedy
    best = int(first_token_shares(policy, 1.0).argmax())
    assert greedy[0].text.startswith(policy.tokenizer.decode([best], skip_special_tokens=True))


def test_states_say_how_a_response_ended(policy: Policy) -> None:
    import copy

    import torch

    ends = copy.deepcopy(policy.model)
    with torch.no_grad():
        ends.lm_head.weight[policy.tokenizer.eos_token_id] = 0
    full = (Message(role="user", content="9" * 70),)
    near = (Message(role="user", content="9" * 58),)  # 3 control tokens: room for 3 more
    found = sample(
        Policy(ends, policy.tokenizer), [full, near], [0, 0],
        max_new_tokens=500, temperature=0.0, top_p=1.0, batch_rows=8,
    )  # fmt: skip
    assert found[0] == Sample("", "too_long", 0)
    assert (found[1].state, found[1].tokens) == ("truncated", 3)
    states = Counter(one.state for one in drawn(policy, PROMPTS * 60, list(range(420))))
    assert set(states) <= {"ok", "truncated", "empty"}
    assert min(states["ok"], states["truncated"]) > 0
    assert cut([5, 6, 1, 7], [1]) == [5, 6, 1]


def test_settings_saved_with_a_model_do_not_reach_the_sampling(policy: Policy) -> None:
    seeds = list(range(len(PROMPTS)))
    before = drawn(policy, PROMPTS, seeds)
    own = policy.model.generation_config
    try:
        own.repetition_penalty, own.top_k, own.do_sample, own.max_length = 5.0, 1, True, 3
        assert drawn(policy, PROMPTS, seeds) == before
        assert policy.model.generation_config is own
    finally:
        own.repetition_penalty, own.top_k, own.do_sample, own.max_length = None, None, None, None


def test_no_prompts_give_no_samples(policy: Policy) -> None:
    assert drawn(policy, [], []) == []
