"""Two processes of accelerate learn what one learns."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, environment
from preferring import dataset, do_train, losses, make_started
from safetensors.torch import load_file

from bpo_data import ranks, stopping
from bpo_data.errors import UserError
from bpo_data.stages.train import TrainConfig

SCRIPT = """
import json, sys
import datasets
from trl import DPOConfig
from preferring import dataset
from bpo_data import training_rows
from bpo_data.policy import load_policy
from bpo_data.trainer import Objective, Trainer

folder, batch, loss, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
policy, reference = (load_policy(folder, None, "cpu", "float32") for _ in range(2))
pairs = dataset().to_pylist()
lists = loss == "tpo"
rows = (training_rows.of_lists(policy, pairs) if lists
        else training_rows.of_pairs(policy, pairs, {"weight": [1.0, 3.0] * 4}))
trainer = Trainer(
    objective=Objective({loss: 1.0}, {"sft": 0.0}, columns=[] if lists else ["weight"]),
    model=policy.model,
    ref_model=reference.model,
    args=DPOConfig(
        output_dir=out, per_device_train_batch_size=batch, max_steps=3, learning_rate=1e-3,
        warmup_steps=0, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1, gradient_checkpointing=False, seed=0,
    ),
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=policy.tokenizer,
)
trainer.train()
if trainer.accelerator.is_main_process:
    lines = [line for line in trainer.state.log_history if "loss" in line]
    figures = [[line["loss"], line["rewards/margins"]] for line in lines]
    print("FOUND " + json.dumps([trainer.accelerator.num_processes, figures]))
"""


def trained(tmp_path: Path, processes: int, batch: int, loss: str) -> list[list[float]]:
    """(loss, margin) of three updates with ``batch`` rows in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launch, f"--master_port={port}", str(script), str(tmp_path / "policy/model"),
         str(batch), loss, str(tmp_path / "out")],
        capture_output=True, text=True, timeout=240,
        env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("FOUND ")] or [done.stderr]
    count, found = json.loads(line.removeprefix("FOUND "))
    assert count == processes
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "rows"), [("lr", 8), ("tpo", 4)])
def test_two_processes_learn_what_one_learns(tmp_path: Path, loss: str, rows: int) -> None:
    make_started(tmp_path / "policy")
    one = trained(tmp_path, 1, rows, loss)
    two = trained(tmp_path, 2, rows // 2, loss)
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"accumulate": 2}], ids=str)
def test_the_stage_with_two_processes_makes_the_model_of_one(tmp_path, settings) -> None:
    policy = make_started(tmp_path / "policy")
    one = do_train(tmp_path / "one", policy, steps=3, **settings)
    two = do_train(tmp_path / "two", policy, steps=3, processes=2, **settings)
    for name in ("updates", "first_loss", "margin", "chosen_over_reference"):
        assert two.facts[name] == pytest.approx(one.facts[name], abs=1e-4), name
    alone, shared = (load_file(made.folder / "model/model.safetensors") for made in (one, two))
    assert alone.keys() == shared.keys()
    for name in alone:
        assert torch.allclose(alone[name], shared[name], atol=1e-4), name
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.slow
def test_an_error_of_one_process_ends_them_all_and_is_told(tmp_path) -> None:
    policy = make_started(tmp_path / "policy")
    far = dataset(ref_chosen_logps=[900.0] * 8, ref_rejected_logps=[-900.0] * 8)
    with pytest.raises(UserError, match=r"train: the loss is inf at update 1. Lower"):
        do_train(tmp_path / "two", policy, far, processes=2, loss="lsif")
    assert not multiprocessing.active_children()


def stop(rank: int) -> None:
    from bpo_data import stopping

    if rank == 0:
        os.kill(os.getppid(), signal.SIGINT)
    while not stopping.asked():
        time.sleep(0.01)
    stopping.check()


def die(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_ranks_are_stopped_together_and_a_killed_one_is_told() -> None:
    with stopping.listening(), pytest.raises(KeyboardInterrupt):
        ranks.together(2, stop)
    with pytest.raises(UserError, match="a process of the training was killed"):
        ranks.together(2, die)
    assert not multiprocessing.active_children()


def test_a_batch_that_processes_cannot_share_is_named() -> None:
    (line,) = TrainConfig(batch=16, accumulate=2, processes=3).problems()
    assert line.startswith("train.batch=16 cannot be split over train.accumulate=2 passes of train")
