"""Facts about the random matrices: inner products are kept, with an error that shrinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bpo_data.gradients.projection import Sketch, layer_signs, signs

SEEDS = range(200)


def project(gradient: torch.Tensor, rank: int, seed: int) -> torch.Tensor:
    left, right = layer_signs(seed, "layer", *gradient.shape, rank)
    return (left.T @ gradient @ right / rank).flatten()


@pytest.fixture
def two_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    """Weight gradients (48 x 96) of many directions, at an angle of cosine 0.5 or so."""
    generator = torch.Generator().manual_seed(0)
    shared, first, second = torch.randn(3, 48, 96, generator=generator)
    return shared + first, shared + second


def relative_errors(
    gradients: tuple[torch.Tensor, torch.Tensor], rank: int
) -> tuple[float, float, float]:
    """Mean, standard error of the mean and spread of the inner product's error over |G| |H|."""
    first, second = gradients
    size = (first.norm() * second.norm()).item()
    found = [(project(first, rank, s) @ project(second, rank, s)).item() for s in SEEDS]
    errors = (np.array(found) - (first * second).sum().item()) / size
    return errors.mean(), errors.std() / np.sqrt(len(errors)), errors.std()


def test_two_sided_projection_keeps_inner_products_on_average(two_gradients):
    mean, standard_error, _ = relative_errors(two_gradients, rank=8)
    assert abs(mean) < 3.5 * standard_error, f"{mean:.4f} +- {standard_error:.4f}"


def test_two_sided_projection_error_falls_about_like_one_over_rank(two_gradients):
    # For gradients of many directions; the next test has a single one.
    spread = [relative_errors(two_gradients, rank)[2] for rank in (4, 16)]
    assert 2.5 < spread[0] / spread[1] < 5, spread


def test_projection_error_of_a_single_direction_falls_like_one_over_root_rank():
    generator = torch.Generator().manual_seed(1)
    outputs, inputs = torch.randn(48 + 96, generator=generator).split([48, 96])
    gradient = torch.outer(outputs, inputs)
    spread = [relative_errors((gradient, gradient), rank)[2] for rank in (8, 32)]
    assert spread[0] / spread[1] == pytest.approx(2, rel=0.35), spread


def sketch_errors(dim: int, width: int = 5000) -> np.ndarray:
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    rows[1] += rows[0]
    size = (rows[0].norm() * rows[1].norm()).item()
    kept = (Sketch(width, dim, seed)(rows) for seed in SEEDS)
    return np.array([((k[0] @ k[1]) - (rows[0] @ rows[1])).item() / size for k in kept])


def test_sketch_keeps_inner_products_on_average():
    errors = sketch_errors(dim=256)
    assert abs(errors.mean()) < 3.5 * errors.std() / np.sqrt(len(errors))


def test_sketch_error_falls_like_one_over_root_dim():
    spread = {dim: sketch_errors(dim).std() for dim in (64, 256, 1024)}
    # (1 + cos^2) / dim is the variance of a dense projection; the sketch's is a little less.
    assert spread[256] == pytest.approx(np.sqrt(1.5 / 256), rel=0.2)
    assert spread[64] / spread[256] == pytest.approx(2, rel=0.25), spread
    assert spread[256] / spread[1024] == pytest.approx(2, rel=0.25), spread


def test_sketch_puts_each_number_in_one_place_with_a_sign_and_fills_places_evenly():
    matrix = Sketch(300, 64, seed=5)(torch.eye(300))
    assert matrix.abs().sum(1).tolist() == [1.0] * 300
    assert matrix.abs().max() == 1
    assert matrix.abs().sum(0).max() <= 5, "300 numbers in 64 places are at most 5 each"


def test_rows_that_fit_are_left_whole():
    sketch = Sketch(30, 64, seed=0)
    rows = torch.randn(2, 30)
    assert sketch.dim == 30
    assert torch.equal(sketch(rows), rows)


def test_signs_belong_to_seed_and_name():
    first = signs(7, "model.layers.0.mlp.up_proj/inputs", 6, 11)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(first, signs(7, "model.layers.0.mlp.up_proj/inputs", 6, 11))
    assert not torch.equal(first, signs(8, "model.layers.0.mlp.up_proj/inputs", 6, 11))
    assert not torch.equal(first, signs(7, "model.layers.1.mlp.up_proj/inputs", 6, 11))


def test_signs_are_the_same_on_every_machine():
    # Written down once: another draw would silently change the numbers of every run.
    row = signs(0, "layer", 1, 16)[0].int().tolist()
    assert row == [-1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, 1, 1, -1, -1]
