"""The same numbers on a GPU. Opted into with ``-m gpu``; skips where torch sees none."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
import torch
from helpers import TINY, run
from preferring import do_train, losses, make_started
from tiny_models import CONFIGS, assert_close, engine, policy, sequences

from bpo_data.components.clusterers import FaissKMeans
from bpo_data.generation import sample
from bpo_data.gradients.engine import ResponseGradients
from bpo_data.likelihood import log_probs
from bpo_data.policy import Policy, encode
from bpo_data.scratch import Scratch, make_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
TALKS = [
    ([{"role": "user", "content": f"question {n}"}], f"answer {n} " * (n % 5)) for n in range(12)
]


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    talks = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in TALKS]
    made = {device: make_policy(talks, Scratch(), 0) for device in ("cpu", "cuda")}
    made["cuda"].model.to("cuda")
    return made


def test_gradients_are_those_of_the_cpu(policies):
    found = {}
    for device, made in policies.items():
        tokens = [encode(made.tokenizer, prompt, text) for prompt, text in TALKS]
        measuring = ResponseGradients(made.model, rank=8, dim=128, seed=0)
        found[device] = measuring.of([row[0] for row in tokens], [row[1] for row in tokens])
    scale = np.abs(found["cpu"].gradient).max()
    np.testing.assert_allclose(found["cuda"].gradient, found["cpu"].gradient, atol=2e-3 * scale)
    np.testing.assert_allclose(found["cuda"].log_prob, found["cpu"].log_prob, rtol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bloom"])
def test_shared_prompts_give_what_whole_sequences_give(kind):
    prompts, responses = sequences(16)
    model = policy(kind).to("cuda")
    shared = engine(model)
    assert shared.shares
    found = shared.of(prompts, responses)
    assert_close(found.gradient, engine(model, share=False).of(prompts, responses).gradient, 1e-3)
    assert_close(found.gradient, engine(policy(kind)).of(prompts, responses).gradient, 1e-2)


def test_bfloat16_on_the_gpu_is_near_float32_on_the_cpu():
    prompts, responses = sequences(16)
    exact = engine(policy("llama")).of(prompts, responses).gradient
    model = policy("llama").to("cuda", torch.bfloat16)
    for compile in (False, True):
        found = engine(model, compile=compile).of(prompts, responses).gradient
        assert_close(found, exact, 0.1)


def test_likelihoods_are_those_of_the_cpu(policies):
    on_cpu, on_gpu = (log_probs(policies[device], TALKS) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3)


def test_sampling_depends_on_the_row_alone(policies):
    prompts, seeds = [prompt for prompt, _ in TALKS], list(range(len(TALKS)))
    settings = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0}
    one, other = (
        sample(policies["cuda"], prompts, seeds, batch_rows=rows, **settings) for rows in (3, 12)
    )
    assert one == other


def test_k_means_on_the_gpu_is_as_good_as_on_the_cpu():
    if not faiss.get_num_gpus():
        pytest.skip("this FAISS has no GPU build")
    rows = np.random.default_rng(0).standard_normal((20_000, 256)).astype(np.float32)
    weights = np.ones(len(rows), np.float32)
    (on_cpu, _), (on_gpu, found) = (
        FaissKMeans(gpu=gpu).once(rows, weights, 50, 1) for gpu in (False, True)
    )
    assert len(set(found.tolist())) == 50
    assert abs(on_gpu / on_cpu - 1) < 0.01


def test_two_processes_on_one_gpu_measure_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("stage=gradients", "runtime.device=cuda", *TINY)
    assert run(*words, f"runtime.folder={one}").returncode == 0
    several = ("runtime.engine=processes", "runtime.processes=2")
    assert run(*words, f"runtime.folder={two}", *several).returncode == 0
    digests = [
        json.loads(path.read_text())["digest"]
        for folder in (one, two)
        for path in folder.glob("gradients-*/manifest.json")
    ]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_the_whole_pipeline_runs_on_the_gpu(tmp_path):
    result = run("stage=all", f"runtime.folder={tmp_path}", "runtime.device=cuda", *TINY)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("evaluate-*/manifest.json")
    assert json.loads(path.read_text())["facts"]["win_rate"]


def test_training_takes_bfloat16_by_itself_where_there_is_such_a_gpu(tmp_path):
    started = make_started(tmp_path / "policy")
    draft = do_train(tmp_path / "auto", started, device="cuda", loss="balanced", dtype="auto")
    able = torch.cuda.is_bf16_supported()
    assert draft.facts["dtype"] == ("bfloat16" if able else "float32")
    assert losses(draft)[-1] < losses(draft)[0]


def test_adapters_over_4_bits_end_in_whole_weights(tmp_path):
    pytest.importorskip("bitsandbytes")
    started = make_started(tmp_path / "policy")
    draft = do_train(tmp_path / "4", started, device="cuda", quantize="4bit", lora_rank=4, steps=20)
    assert losses(draft)[-1] < losses(draft)[0]
    assert (draft.folder / "model/model.safetensors").is_file()
