"""A random tiny policy and a few pairs, to train on in a fraction of a second."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data.artifacts import Artifact, Draft
from bpo_data.policy import Policy, encode, load_policy, save_policy
from bpo_data.runtime import Runtime
from bpo_data.scratch import Scratch, make_policy
from bpo_data.stages import train
from bpo_data.stages.train import TrainConfig
from bpo_data.tables import ID, MSG

SIZES = Scratch(vocabulary=300, width=16, layers=1, heads=2, hidden=16, positions=48)
PROMPTS, DEPTH = 4, 2


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"add {number} and 2"}]


def text_of(number: int, place: int) -> str:
    return ("= {}", "maybe {} or so", "it is {} I think")[place].format(number + 2)


def dataset(**columns: list[float]) -> pa.Table:
    """Two pairs for each of four prompts: the first response over the second and over the third."""
    rows = [(number, place) for number in range(PROMPTS) for place in (1, 2)]
    table = {
        "prompt": pa.array([asked(number) for number, _ in rows], MSG),
        "chosen": pa.array([said(text_of(number, 0)) for number, _ in rows], MSG),
        "rejected": pa.array([said(text_of(n, place)) for n, place in rows], MSG),
        "split": ["train"] * len(rows),
        "pair_id": pa.array([f"p{number}/00>{place:02d}" for number, place in rows], ID),
        "prompt_id": pa.array([f"p{number}" for number, _ in rows], ID),
        "score_chosen": pa.array([9.0] * len(rows), pa.float32()),
        "score_rejected": pa.array([5.0 - place for _, place in rows], pa.float32()),
        "margin": pa.array([4.0 + place for _, place in rows], pa.float32()),
    }
    return pa.table(table | {name: pa.array(values) for name, values in columns.items()})


def pairs_table() -> pa.Table:
    """The pairs that the dataset was made of, with the ids of their responses."""
    ids = dataset()["pair_id"].to_pylist()
    return pa.table(
        {
            "pair_id": pa.array(ids, ID),
            "chosen_id": pa.array([f"{one[:2]}/{one[3:5]}" for one in ids], ID),
            "rejected_id": pa.array([f"{one[:2]}/{one[6:8]}" for one in ids], ID),
        }
    )


class Table(Artifact):
    """An artifact of one table that was never written."""

    def __init__(self, rows: pa.Table, **settings: Any) -> None:
        super().__init__(Path(), {"settings": settings})
        self.rows_of = rows

    def table(self, columns: list[str] | None = None) -> pa.Table:
        return self.rows_of.select(columns) if columns else self.rows_of


def make_started(folder: Path) -> Path:
    """A policy with random weights, as the ``sft`` stage leaves one."""
    talks = [
        [*asked(number), *said(text_of(number, place))]
        for number in range(12)
        for place in range(3)
    ]
    save_policy(make_policy(talks, SIZES, seed=3), folder / "model")
    return folder


def do_train(
    folder: Path,
    policy: Path,
    table: pa.Table | None = None,
    inputs: dict[str, Artifact] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Draft:
    """The ``train`` stage with every pair in every update; a folder that is there is gone on in."""
    asked_for = {"steps": 10, "batch": 8, "learning_rate": 1e-2, "warmup_steps": 0, "dtype": "auto"}
    config = TrainConfig(**(asked_for | settings))
    assert list(config.problems()) == []
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {"policy": Artifact(policy, {}), **(inputs or {})}
    draft = Draft(folder, "trained", train.schema(config), artifacts)
    train.run(draft, config, Runtime(device=device), dataset=dataset() if table is None else table)
    return draft


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()


def losses(draft: Draft) -> list[float]:
    found: list[float] = draft.read()["loss"].to_pylist()
    return found


def log_prob(folder: Path, prompt: int | list[dict[str, str]], text: str) -> float:
    """log pi(response | prompt) in nats, straight from the logits."""
    import torch

    policy = loaded(folder)
    turns = asked(prompt) if isinstance(prompt, int) else prompt
    before, after = encode(policy.tokenizer, turns, text)
    with torch.no_grad():
        logits = policy.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)].sum().item()


@lru_cache
def loaded(folder: Path) -> Policy:
    return load_policy(str(folder / "model"), None, "cpu", "float32")
