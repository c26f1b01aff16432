"""Two processes of accelerate learn what one learns."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, environment
from preferring import make_started

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
