"""The gradients stage: references, what is set aside and why, float16 rows, and what it tells."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.artifacts import Artifact, Draft
from bpo_data.engines import Place, engine_of
from bpo_data.engines.processes import Processes
from bpo_data.errors import UserError
from bpo_data.gradients.engine import ResponseGradients
from bpo_data.gradients.passes import Passes
from bpo_data.gradients.projection import Sketch, layer_signs
from bpo_data.losses import LOSSES, of_pairs
from bpo_data.measuring import stored
from bpo_data.policy import encode, load_policy, save_policy
from bpo_data.runtime import Runtime
from bpo_data.scratch import Scratch, make_policy
from bpo_data.stages import cluster, gradients
from bpo_data.stages.cluster import ClusterConfig
from bpo_data.stages.gradients import GradientsConfig
from bpo_data.tables import ID, MSG, matrix

RANK, DIM, BETA = 4, 96, 0.1
SIZES = Scratch(width=24, hidden=32, heads=2, layers=2, positions=64)
ASKED = [[{"role": "user", "content": f"question {n} of many"}] for n in range(4)]
SAID = ["answer one", "nothing of the kind", "yes", "perhaps answer two or three"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if 'refuse' in m['content'] %}{{ raise_exception('not that') }}{% endif %}"
    "{% if m['role'] == 'assistant' and 'merge' in m['content'] %}{{ m['content'] }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Refuses what says so, drops the turn's beginning for ``merge``, and writes no end token."""


def make_model(folder: Path, seed: int = 0, template: str = "") -> Path:
    """An artifact of the ``sft`` stage with a random policy in ``model/``."""
    talks = [
        [*asked, {"role": "assistant", "content": f"{text} zebra"}]
        for asked, text in zip(ASKED, SAID, strict=True)
    ]
    policy = make_policy(talks, SIZES, seed)
    policy.tokenizer.chat_template = template or policy.tokenizer.chat_template
    save_policy(policy, folder / "model")
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy") / "sft")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A reference: the same tokenizer, other weights."""
    return make_model(tmp_path_factory.mktemp("reference") / "sft", seed=1)


def responses_table(texts: list[list[str]]) -> pa.Table:
    """Each prompt's responses."""
    rows = [(n, m, text) for n, some in enumerate(texts) for m, text in enumerate(some)]
    return pa.table(
        {
            "response_id": [f"p{n}/{m:02d}" for n, m, _ in rows],
            "prompt_id": [f"p{n}" for n, _, _ in rows],
            "text": [text for _, _, text in rows],
            "state": ["ok"] * len(rows),
        }
    )


def measure(
    folder: Path, policy: Path, texts: list[list[str]], engine: str = "local", **settings: Any
) -> Draft:
    config = GradientsConfig(**({"rank": RANK, "dim": DIM, "seed": 3} | settings))
    assert not list(config.problems())
    folder.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(device="cpu", engine=engine, processes=2 if engine != "local" else 0)
    inputs = {"policy": Artifact(policy, {})}
    draft = Draft(folder, "gradients", gradients.schema(config), inputs, engine=engine_of(runtime))
    prompts = pa.table(
        {"prompt_id": pa.array([f"p{n}" for n in range(4)], ID), "prompt": pa.array(ASKED, MSG)}
    )
    gradients.run(draft, config, runtime, prompts=prompts, responses=responses_table(texts))
    return draft


TEXTS = [SAID, SAID[1:], SAID[:2], SAID[2:]]
PAIRS = pa.table(
    {"chosen_id": ["p0/00", "p0/03", "p1/02", "p3/00"],
     "rejected_id": ["p0/01", "p0/02", "p1/00", "p3/01"]}
)  # fmt: skip


def log_prob(model: Any, tokens: tuple[list[int], list[int]]) -> torch.Tensor:
    prompt, response = tokens
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum()


def tokens_of(policy: Any, response_id: str) -> tuple[list[int], list[int]]:
    prompt, number = int(response_id[1]), int(response_id[3:])
    return encode(policy.tokenizer, ASKED[prompt], TEXTS[prompt][number])


def projected(model: Any) -> np.ndarray:
    """The weights' ``.grad`` of all linear layers but the head, projected, (dim,)."""
    kept = []
    for name, module in sorted(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            left, right = layer_signs(3, name, *module.weight.shape, RANK)
            kept.append((left.T @ module.weight.grad @ right / RANK).flatten())
    return Sketch(len(kept) * RANK**2, DIM, 3)(torch.cat(kept)[None])[0].numpy()


@pytest.fixture(scope="module")
def against_other(started, other, tmp_path_factory) -> pa.Table:
    folder = tmp_path_factory.mktemp("gradients") / "made"
    return measure(folder, started, TEXTS, reference=str(other / "model")).read()


OF_PAIRS = [name for name, loss in LOSSES.items() if loss.of_pairs]


@pytest.mark.parametrize("loss", OF_PAIRS)
def test_pair_gradients_away_from_the_reference_equal_autograd_of_the_loss_on_whole_pairs(
    started, other, against_other, loss
):
    rows, _ = cluster.gradients_of(PAIRS, against_other, ClusterConfig(loss=loss, beta=BETA))
    policy, reference = (load_policy(str(f / "model"), None, "cpu", "float32")
                         for f in (started, other))  # fmt: skip
    for row, pair in zip(rows, PAIRS.to_pylist(), strict=True):
        ratios, lengths = [], {}
        for side in ("chosen", "rejected"):
            tokens = tokens_of(policy, pair[f"{side}_id"])
            with torch.no_grad():
                fixed = log_prob(reference.model, tokens)
            measured = log_prob(policy.model, tokens)
            ratios.append(measured if LOSSES[loss].measures == "log_prob" else measured - fixed)
            lengths[f"{side}_tokens"] = torch.tensor(len(tokens[1]))
        assert abs(ratios[0] - ratios[1]) > 0.1, "the test needs a policy away from its reference"
        policy.model.zero_grad()
        of_pairs(LOSSES[loss], *ratios, BETA, columns=lengths).backward()
        expected = projected(policy.model)
        assert np.linalg.norm(row - expected) < 1e-4 * np.linalg.norm(expected)


def test_without_a_reference_the_policy_is_its_own(started, tmp_path):
    alone = measure(tmp_path / "alone", started, TEXTS).read()
    assert alone["reference_log_prob"].equals(alone["log_prob"])
    itself = measure(tmp_path / "itself", started, TEXTS, reference=str(started / "model")).read()
    np.testing.assert_allclose(itself["reference_log_prob"], alone["log_prob"], rtol=1e-6)


def test_unprompted_is_the_same_response_after_an_empty_message(started, tmp_path):
    found = measure(tmp_path / "made", started, TEXTS, unprompted=True).read()
    policy = load_policy(str(started / "model"), None, "cpu", "float32")
    silent, _ = encode(policy.tokenizer, [{"role": "user", "content": ""}], "yes")
    assert silent
    for row in found.to_pylist():
        _, response = tokens_of(policy, row["response_id"])
        expected = log_prob(policy.model, (silent, response)).item()
        assert row["unprompted_log_prob"] == pytest.approx(expected, rel=1e-4)
        assert row["unprompted_log_prob"] != pytest.approx(row["log_prob"], rel=1e-4)
    without = measure(tmp_path / "without", started, TEXTS).read()
    assert found.drop_columns("unprompted_log_prob").equals(without)


def test_unprompted_wants_a_template_that_takes_an_empty_message(tmp_path):
    silent = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    policy = make_model(tmp_path / "sft", template=silent)
    with pytest.raises(UserError, match=r"gradients\.unprompted=true: the chat template writes no"):
        measure(tmp_path / "made", policy, TEXTS, unprompted=True)


def test_adapters_off_is_the_model_they_were_trained_on(started, tmp_path):
    peft = pytest.importorskip("peft")
    base = load_policy(str(started / "model"), None, "cpu", "float32")
    wrapped = peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    adapted = shutil.copytree(started, tmp_path / "adapted")
    wrapped.save_pretrained(adapted / "model")
    found = measure(tmp_path / "made", adapted, TEXTS, reference="adapter_off").read()
    expected = measure(tmp_path / "base", started, TEXTS).read()
    np.testing.assert_allclose(found["reference_log_prob"], expected["log_prob"], rtol=1e-5)
    ratio = found["log_prob"].to_numpy() - found["reference_log_prob"].to_numpy()
    assert np.abs(ratio).max() > 1e-3


def test_a_policy_without_adapters_has_none_to_leave_out(started, tmp_path):
    with pytest.raises(UserError, match=r"gradients\.reference=adapter_off: .*no adapters"):
        measure(tmp_path / "made", started, TEXTS, reference="adapter_off")


def test_a_reference_that_reads_other_tokens_is_named(started, other, tmp_path):
    model = shutil.copytree(other / "model", tmp_path / "reference")
    template = (model / "chat_template.jinja").read_text().replace("<|assistant|>", "<|tool|>")
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=rf"reference={model} has another .* in response p0/00"):
        measure(tmp_path / "made", started, TEXTS, reference=str(model))


def test_a_reference_that_holds_less_sets_aside_what_it_cannot_read(started, other, tmp_path):
    model = shutil.copytree(other / "model", tmp_path / "reference")
    config = json.loads((model / "config.json").read_text())
    policy = load_policy(str(started / "model"), None, "cpu", "float32")
    lengths = [sum(map(len, tokens_of(policy, f"p0/{n:02d}"))) for n in range(4)]
    (model / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": max(lengths) - 1})
    )
    draft = measure(tmp_path / "made", started, [SAID, [], [], []], reference=str(model))
    assert draft.facts["set_aside"] == {"too_long": lengths.count(max(lengths))}


def test_rows_that_cannot_be_measured_are_named_and_change_no_other(tmp_path):
    policy = make_model(tmp_path / "sft", template=TEMPLATE)
    loaded = load_policy(str(policy / "model"), None, "cpu", "float32")
    (zebra,) = loaded.tokenizer(" zebra", add_special_tokens=False)["input_ids"]
    loaded.model.model.embed_tokens.weight.data[zebra] = torch.nan
    save_policy(loaded, policy / "model")
    bad = ["refuse", "merge", "", "yes " * 70, "yes zebra yes"]
    whole = measure(tmp_path / "whole", policy, [SAID + bad, [*bad[3:], *SAID], SAID, bad[:1]])
    good = measure(tmp_path / "good", policy, [SAID, [], SAID, []])
    aside = {row["response_id"]: row for row in pa_rows(whole, "set_aside.parquet")}
    assert {name: row["reason"] for name, row in aside.items()} == {
        "p0/04": "template_refuses",
        "p0/05": "template_refuses",
        "p0/06": "no_tokens",
        "p0/07": "too_long",
        "p0/08": "not_finite",
        "p1/00": "too_long",
        "p1/01": "not_finite",
        "p3/00": "template_refuses",
    }
    assert "not that" in aside["p0/04"]["detail"]
    assert "beginning of prompt and response" in aside["p0/05"]["detail"]
    assert "the model holds 64" in aside["p0/07"]["detail"]
    assert whole.facts["set_aside"] == {
        "no_tokens": 1, "not_finite": 2, "template_refuses": 3, "too_long": 2,
    }  # fmt: skip
    assert whole.facts["notes"] == [
        "8 of 20 responses set aside in set_aside.parquet: "
        "1 no_tokens, 2 not_finite, 3 template_refuses, 2 too_long (40 %)"
    ]
    same = [row for row in whole.read().to_pylist() if row["response_id"][:2] in ("p0", "p2")]
    for row, expected in zip(same, good.read().to_pylist(), strict=True):
        assert row["response_id"] == expected["response_id"]
        assert row["log_prob"] == pytest.approx(expected["log_prob"], rel=1e-5)
        size = np.abs(expected["gradient"]).max()
        np.testing.assert_allclose(row["gradient"], expected["gradient"], atol=1e-5 * size)
    assert whole.read().num_rows == 12
    assert good.facts["set_aside"] == {}
    assert "notes" not in good.facts


def pa_rows(draft: Draft, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.ParquetFile(draft.folder / name).read().to_pylist()


def test_nothing_that_can_be_measured_is_a_user_error(started, tmp_path):
    with pytest.raises(UserError, match=r"none of 1 responses could be measured .*too_long"):
        measure(tmp_path / "made", started, [["yes " * 70], [], [], []])


def test_float16_rows_keep_11_bits_and_cluster_like_float32(started, tmp_path):
    whole = measure(tmp_path / "whole", started, TEXTS).read()
    half = measure(tmp_path / "half", started, TEXTS, store="float16").read()
    exact, rounded = matrix(whole["gradient"]), matrix(half["gradient"])
    assert (exact.dtype, rounded.dtype) == (np.float32, np.float16)
    assert set(whole["scale"].to_pylist()) == {1.0}
    back = rounded.astype(np.float64) * half["scale"].to_numpy()[:, None]
    large = np.abs(exact) > 2.0**-28 * np.abs(exact).max(axis=1, keepdims=True)
    assert (np.abs(back - exact) <= 2.0**-11 * np.abs(exact))[large].all()
    ours, theirs = (cluster.gradients_of(PAIRS, one, ClusterConfig())[0] for one in (half, whole))
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)
    assert ours.dtype == np.float32


@given(power=st.integers(-100, 100), largest=st.floats(1, 8))
def test_float16_rows_neither_overflow_nor_vanish_and_a_power_of_two_is_free(power, largest):
    row = np.array([[largest, -1.0, 1e-4, 0.0]], np.float32)
    column, scale = stored(np.ldexp(row, power), half=True)
    at_zero, scale_at_zero = stored(row, half=True)
    assert column.equals(at_zero)
    assert scale[0] == np.ldexp(scale_at_zero[0], power)
    back = matrix(column).astype(np.float64) * scale[:, None]
    np.testing.assert_allclose(back, np.ldexp(row.astype(np.float64), power), rtol=2**-11)


def test_float16_rows_of_nothing_and_of_the_largest_numbers():
    for row in (np.zeros((1, 3)), np.zeros((0, 3)), np.full((1, 3), 3.4e38)):
        column, scale = stored(row.astype(np.float32), half=True)
        assert len(column) == len(row)
        assert np.isfinite(matrix(column)).all()
        assert np.isfinite(scale).all()


def test_it_tells_how_it_measured(started, tmp_path, monkeypatch):
    draft = measure(tmp_path / "easy", started, TEXTS, batch_tokens=1000)
    told = {key: draft.facts[key] for key in ("shares_prompts", "batch_tokens", "device", "dtype")}
    assert told == {
        "shares_prompts": True, "batch_tokens": 1000, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    assert "notes" not in draft.facts
    measuring = Passes.gradients

    def of_little_memory(self: Any, batch: Any) -> Any:
        if len(batch.rows) > 3:
            raise torch.OutOfMemoryError
        return measuring(self, batch)

    monkeypatch.setattr(Passes, "gradients", of_little_memory)
    tight = measure(tmp_path / "tight", started, TEXTS, batch_tokens=1000)
    assert tight.facts["batch_tokens"] < 1000
    (note,) = tight.facts["notes"]
    assert "gradients.batch_tokens=1,000 did not fit in memory" in note
    np.testing.assert_allclose(
        matrix(tight.read()["gradient"]), matrix(draft.read()["gradient"]), atol=1e-4
    )


def test_processes_make_the_same_bytes(started, tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "PART_ROWS", 3)
    one = measure(tmp_path / "one", started, TEXTS)
    several = measure(tmp_path / "several", started, TEXTS, engine="processes")
    assert several.table_files == one.table_files
    assert len(one.table_files) == 4
    for name in [*one.table_files, "set_aside.parquet"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()
    before = {name: (several.folder / name).stat().st_mtime_ns for name in several.table_files}
    (several.folder / one.table_files[2]).unlink()
    again = measure(tmp_path / "several", started, TEXTS)
    after = {name: (again.folder / name).stat().st_mtime_ns for name in again.table_files}
    assert [name for name in before if before[name] != after[name]] == [one.table_files[2]]


def die(place: Place) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def stumble(place: Place) -> Any:
    raise UserError(f"process {place.number} has no model")


def keep(folder: Path, name: str, part: pa.Table) -> None:
    (folder / name).write_text(str(part.num_rows))


@pytest.mark.slow
def test_a_worker_that_is_killed_or_fails_is_told(tmp_path):
    parts = [(f"part{n}", pa.table({"x": [n]})) for n in range(8)]
    engine = Processes(Runtime(processes=2))
    with pytest.raises(UserError, match="a worker process was killed"):
        list(engine.each(parts, die, partial(keep, tmp_path), None))
    with pytest.raises(UserError, match="has no model"):
        list(engine.each(parts, stumble, partial(keep, tmp_path), None))


def test_one_response_too_large_for_the_memory_is_a_user_error(started, tmp_path, monkeypatch):
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ResponseGradients, "of", full)
    with pytest.raises(UserError, match="a single response does not fit"):
        measure(tmp_path / "made", started, TEXTS)


def test_a_model_that_does_not_say_its_blocks_is_not_compiled(started):
    policy = load_policy(str(started / "model"), None, "cpu", "float32")
    policy.model._no_split_modules = None
    with pytest.raises(UserError, match=r"compile=true: .* Use gradients\.compile=false"):
        gradients.engine_of(policy, GradientsConfig(compile=True), "")


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers(started, tmp_path):
    plain = measure(tmp_path / "plain", started, TEXTS).read()
    compiled = measure(tmp_path / "compiled", started, TEXTS, compile=True).read()
    want = matrix(plain["gradient"])
    found = matrix(compiled["gradient"])
    assert np.linalg.norm(found - want) < 1e-4 * np.linalg.norm(want)


def test_the_last_blocks_alone_are_part_of_all(started, tmp_path):
    whole = measure(tmp_path / "whole", started, TEXTS, dim=10**6)
    last = measure(tmp_path / "last", started, TEXTS, dim=10**6, layers="last:1")
    both = measure(tmp_path / "both", started, TEXTS, dim=10**6, layers="last:2")
    assert 2 * last.facts["dim"] == whole.facts["dim"] == both.facts["dim"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"store": "float8"}, "gradients.store=float8: choose float32 or float16."),
        ({"dtype": "half"}, "gradients.dtype=half: choose auto, float32 or bfloat16."),
        ({"preconditioner": "sgd"}, "gradients.preconditioner=sgd: choose none or adam."),
        ({"layers": "last:0"}, "gradients.layers=last:0: write last:2"),
        ({"layers": "last:x"}, "gradients.layers=last:x: write last:2"),
        ({"layers": "mlp("}, "gradients.layers=mlp( is no regular expression"),
        ({"reference": "./nowhere"}, "gradients.reference=./nowhere is no folder"),
        ({"reference_revision": "main"}, "name it in gradients.reference"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, problem):
    (line,) = GradientsConfig(**settings).problems()
    assert problem in line
