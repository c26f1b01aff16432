"""Rows go through the model in batches: who is in which, and what becomes of one too large."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import assert_close, engine, policy, sequences

from bpo_data.gradients.packing import batches, groups, tiles

torch.set_num_threads(1)


@given(
    owners=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    data=st.data(),
    tokens=st.integers(1, 200),
)
def test_groups_and_batches_hold_every_row_once_within_the_budget(owners, data, tokens):
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=len(owners), max_size=len(owners)))
    prompts = [[owner] * (owner + 1) for owner in owners]
    responses = [[0] * length for length in lengths]
    made = groups(range(len(owners)), prompts, responses, tokens)
    assert sorted(row for group in made for row in group.rows) == list(range(len(owners)))
    for group in made:
        assert len({owners[row] for row in group.rows}) == 1
        cost = len(prompts[group.rows[0]]) + sum(lengths[row] for row in group.rows)
        assert group.tokens == cost
        assert cost <= tokens or len(group.rows) == 1
    for batch in batches(made, tokens):
        assert len(batch) == 1 or sum(group.tokens for group in batch) <= tokens
    assert sorted(id(g) for b in batches(made, tokens) for g in b) == sorted(map(id, made))


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_tiles_cover_a_sequence_and_waste_little(lengths):
    lengths = sorted(lengths, reverse=True)
    made = tiles(lengths, start=7)
    assert [length for tile in made for length in tile.lengths] == lengths
    ends = [tile.end for tile in made]
    assert [tile.start for tile in made] == [7, *ends[:-1]]
    assert [tile.first for tile in made] == [
        sum(len(t.lengths) for t in made[:n]) for n in range(len(made))
    ]
    for tile in made:
        assert max(tile.lengths) <= 32 or min(tile.lengths) >= 0.8 * max(tile.lengths)


def test_many_responses_to_one_prompt_do_not_crowd_a_batch():
    prompts, responses = [[1] * 90] * 500, [[2]] * 500
    made = groups(range(500), prompts, responses, 600)
    assert sorted(row for group in made for row in group.rows) == list(range(500))
    for batch in batches(made, 600):
        shared = sum(group.shared for group in batch)
        turns = max(len(group.rows) for group in batch)
        assert turns * shared <= 4 * 600


def out_of_memory_above(model: Any, tokens: int) -> Any:
    def refuse(module: Any, args: Any) -> None:
        if args[0].shape[0] * args[0].shape[1] > tokens:
            raise torch.OutOfMemoryError("as CUDA says it")

    return model.model.layers[1].mlp.up_proj.register_forward_pre_hook(refuse)


def test_out_of_memory_halves_the_batch_and_goes_on(caplog):
    llama = policy("llama")
    prompts, responses = sequences(24)
    expected = engine(llama).of(prompts, responses)
    measuring = engine(llama, batch_tokens=4096)
    handle = out_of_memory_above(llama, 60)
    with caplog.at_level(logging.WARNING, "bpo_data"):
        found = measuring.of(prompts, responses)
        again = measuring.of(prompts, responses)
    handle.remove()
    assert_close(found.gradient, expected.gradient, 1e-5)
    assert again.gradient.tobytes() == found.gradient.tobytes() or np.allclose(
        again.gradient, found.gradient, rtol=1e-4, atol=1e-5
    )
    assert 30 <= measuring.batch_tokens <= 120, "from what did not fit, not from 4096"
    assert caplog.text.count("batch_tokens") == 1, "said once"


def test_a_single_response_that_does_not_fit_is_an_error():
    llama = policy("llama")
    handle = out_of_memory_above(llama, 5)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            engine(llama, share=True).of(*sequences())
    finally:
        handle.remove()
