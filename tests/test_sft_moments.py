"""AdamW's second moments: what sft keeps, and gradients over their roots against LESS's formula."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_gradients_stage import TEXTS, log_prob, measure, projected, tokens_of
from test_train import SIZES, do_sft

from bpo_data import moments
from bpo_data.errors import UserError
from bpo_data.policy import encode, load_policy
from bpo_data.scratch import Scratch
from bpo_data.stages import sft
from bpo_data.stages.sft import SftConfig
from bpo_data.tables import matrix

ROWS: Any = [(f"question {n} of many", [(f"answer {n} two", None)], "seed") for n in range(12)]
ROOM = Scratch(**(vars(SIZES) | {"positions": 128}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moments") / "sft"
    do_sft(folder, ROWS, keep_moments=True, scratch=ROOM)
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(moments.beside(folder / "model"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_every_parameter_has_its_second_moments_and_they_repeat(trained, tmp_path):
    model = load_policy(str(trained / "model"), None, "cpu", "float32").model
    kept = read(trained)
    assert {name: tuple(v.shape) for name, v in kept.items()} == {
        name: tuple(weight.shape) for name, weight in model.named_parameters()
    }
    assert all((v >= 0).all() for v in kept.values())
    again = do_sft(tmp_path / "again", ROWS, keep_moments=True, scratch=ROOM)
    paths = [moments.beside(folder / "model") for folder in (trained, again.folder)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    without = do_sft(tmp_path / "without", ROWS, scratch=ROOM)
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (trained, without.folder)]
    assert weights[0] == weights[1], "keeping them changes no weight"
    assert not moments.beside(without.folder / "model").exists()


def test_after_one_update_the_root_of_the_second_moment_is_the_gradient(tmp_path):
    one = {"learning_rate": 1e-12, "warmup_steps": 0, "steps": 1, "batch": 1, "weight_decay": 0.0}
    draft = do_sft(tmp_path / "sft", ROWS[:1], **one, keep_moments=True, scratch=ROOM)
    policy = load_policy(str(draft.folder / "model"), None, "cpu", "float32")
    prompt = [{"role": "user", "content": ROWS[0][0]}]
    log_prob(policy.model, encode(policy.tokenizer, prompt, ROWS[0][1][0][0])).backward()
    kept = read(draft.folder)
    ours, expected = (
        torch.cat([row.flatten() for row in rows])
        for rows in (
            [kept[name].sqrt() for name, _ in policy.model.named_parameters()],
            [weight.grad.abs() for weight in policy.model.parameters()],
        )
    )
    # The loss is a mean over tokens and TRL clips its gradient: the direction is what is left.
    assert torch.nn.functional.cosine_similarity(ours, expected, dim=0) > 1 - 1e-5


def less(
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    beta1: float,
    beta2: float,
    step: int,
    eps: float,
) -> torch.Tensor:
    """Gamma of LESS, section 3.1, with ``second`` the moment that the divisor is to be made of."""
    m = (beta1 * first + (1 - beta1) * gradient) / (1 - beta1**step)
    return m / ((second / (1 - beta2**step)).sqrt() + eps)


def test_preconditioned_rows_are_less_without_its_first_moment(trained, tmp_path):
    found = measure(tmp_path / "made", trained, TEXTS, preconditioner="adam").read()
    policy = load_policy(str(trained / "model"), None, "cpu", "float32")
    kept = read(trained)
    for name, row in zip(found["response_id"].to_pylist(), matrix(found["gradient"]), strict=True):
        policy.model.zero_grad()
        log_prob(policy.model, tokens_of(policy, name)).backward()
        for parameter, weight in policy.model.named_parameters():
            gone, second = torch.zeros_like(weight), kept[parameter]
            weight.grad = less(weight.grad, gone, second, 0.0, 0.98, step=6, eps=1e-8)
        expected = projected(policy.model)
        assert np.linalg.norm(row - expected) < 1e-4 * np.linalg.norm(expected)
    plain = measure(tmp_path / "plain", trained, TEXTS).read()
    np.testing.assert_array_equal(plain["log_prob"], found["log_prob"])
    cosine = [np.corrcoef(*rows)[0, 1] for rows in
              zip(matrix(plain["gradient"]), matrix(found["gradient"]), strict=True)]  # fmt: skip
    assert max(cosine) < 0.99, "the moments change the direction"


def test_a_tied_head_has_the_moments_of_the_embedding(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
        optimizer.step()
    moments.save(optimizer, model, tmp_path / "kept")
    scales = moments.AdamScales(tmp_path / "kept", model)
    weight = model.model.embed_tokens.weight
    second = optimizer.state[weight]["exp_avg_sq"]
    expected = 1 / ((second / (1 - 0.98**3)).sqrt() + 1e-8)
    torch.testing.assert_close(scales["lm_head"], expected)
    with pytest.raises(KeyError):
        scales["nowhere"]


def test_a_policy_without_moments_names_the_setting(trained, tmp_path):
    given = shutil.copytree(trained / "model", tmp_path / "mine" / "given")
    pointed = do_sft(tmp_path / "sft", kind="given", model=str(given)).folder
    with pytest.raises(
        UserError, match=r"no .*given\.moments\.safetensors\. Set sft\.keep_moments"
    ):
        measure(tmp_path / "made", pointed, TEXTS, preconditioner="adam")
    config = SftConfig(kind="given", model=str(given))
    before = sft.outside(config)
    shutil.copy(moments.beside(trained / "model"), moments.beside(given))
    assert set(sft.outside(config)) - set(before) == {"given.moments.safetensors"}
    assert measure(tmp_path / "now", pointed, TEXTS, preconditioner="adam").read().num_rows


def test_moments_of_another_model_are_named(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    small = do_sft(tmp_path / "small", ROWS, keep_moments=True,
                   scratch=Scratch(**(vars(ROOM) | {"hidden": 8}))).folder  # fmt: skip
    shutil.copy(moments.beside(small / "model"), moments.beside(other / "model"))
    with pytest.raises(UserError, match=r"is of another model: model\.layers\.0\.mlp\S+ has shape"):
        measure(tmp_path / "made", other, TEXTS, preconditioner="adam")


def test_keeping_moments_of_nothing_trained_is_named():
    (line,) = SftConfig(kind="given", model="x", keep_moments=True).problems()
    assert "sft.keep_moments=true has no use" in line
