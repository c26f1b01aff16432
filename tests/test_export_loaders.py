"""Exported formats read by other trainers' own loaders, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exporting import LONGEST, World, chatml, plain_pair, read
from helpers import ROOT

from bpo_data.artifacts import Draft

LOADERS = {
    "openrlhf": ("openrlhf==0.11.2", ["pylatexenc"]),
    "llamafactory": ("llamafactory==0.9.5", ["peft", "omegaconf", "pillow", "av"]),
    "axolotl": (
        "axolotl==0.19.0",
        ["peft", "addict", "colorama", "numba", "posthog", "python-dotenv", "requests", "pillow"],
    ),
}
"""The package, installed without the GPU packages it asks for, and what its loader imports."""


@pytest.fixture(scope="module")
def draft(qwen: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return world.write(tmp_path_factory.mktemp("x"), qwen, *LOADERS, max_length=LONGEST)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """An interpreter with a trainer's package, in an environment of its own."""
    folder = tmp_path_factory.mktemp("trainers") / "venv"
    venv.create(folder, with_pip=True)
    program = str(folder / "bin" / "python")

    def pip(*words: str) -> None:
        limits = ["-c", str(ROOT / "constraints.txt")]
        done = subprocess.run(
            [program, "-m", "pip", "install", "-q", *words, *limits],
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"pip cannot install {' '.join(words)} here: {done.stderr[-300:]}")

    def made(name: str) -> str:
        package, others = LOADERS[name]
        pip("torch", "transformers", "datasets", "trl", "jinja2", *others)
        pip("--no-deps", package)
        return program

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_the_trainers_own_loader_reads_what_the_facts_say(
    name, draft, world, qwen, python, tmp_path
):
    result = subprocess.run(
        [python(name), str(ROOT / "tests" / "trainer_loaders.py"), name,
         str(draft.folder / "formats" / name), str(qwen)],
        capture_output=True, text=True, cwd=tmp_path, timeout=600,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
             "DISABLE_VERSION_CHECK": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    made = json.loads(result.stdout.splitlines()[-1])
    facts = draft.facts["formats"][name]
    assert len(made["train"]) == facts["pairs"]
    trained = sum(row["split"] == "train" for row in world.dataset)
    assert facts["pairs"] + facts["dropped"] + facts["refused"] == trained
    assert made.get("train_cut", 0) == facts["cut"]
    assert sum(row["chosen"] == row["rejected"] for row in made["train"]) == facts["alike"]
    same_texts(name, [*made["train"], *made["test"]], draft)


def same_texts(name: str, rows: list[dict[str, Any]], draft: Draft) -> None:
    """What the loader made of each row holds our texts."""
    written = [
        plain_pair(name, row) for split in ("train", "test") for row in read(draft, name, split)
    ]
    if name == "llamafactory":
        told = [
            (
                [*([{"role": "system", "content": row["system"]}] if row["system"] else []),
                 *row["prompt"]],
                *(answer["content"] for answer in row["answers"]),
            )
            for row in rows
        ]  # fmt: skip
        assert told == written
        return
    whole = {(chatml(p), c.strip(), r.strip()) for p, c, r in written}
    for row in rows:
        head = row["prompt"].removesuffix("<|im_start|>assistant\n")
        if name == "axolotl":  # nothing is cut
            sides = [
                row[side].removesuffix("<|im_end|>").strip() for side in ("chosen", "rejected")
            ]
            assert (head, *sides) in whole
        else:
            assert any(head == prompt for prompt, _, _ in whole)
