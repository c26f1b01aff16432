"""Exports small enough to write by hand, for the tests of formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bpo_data.artifacts import Draft
from bpo_data.components.exporters import KINDS
from bpo_data.components.exporters.rows import Answer, Asked, Pair
from bpo_data.stages import export
from bpo_data.stages.export import ExportConfig
from bpo_data.tables import MSG, Message

ALL = list(KINDS)
LONGEST = 80
"""Tokens at which some of the pairs of ``some`` fit, some are cut and some dropped."""
PAIRWISE = ["trl", "openrlhf", "llamafactory", "axolotl", "nemo_rl", "openai", "conversations"]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def model_folder(folder: Path, name: str = "qwen", **changes: Any) -> Path:
    """A tiny model with tokenizer and chat template, as it lies on a disk."""
    from test_templates import MODELS, make  # torch, which row tests do without

    made = make(**{**MODELS[name], **changes})
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


PROMPTS = pa.schema([("prompt_id", pa.string()), ("prompt", MSG)])
SCORES = pa.schema([("response_id", pa.string()), ("score", pa.float32())])


class Given:
    """Splits that are given, in the place of those drawn."""

    def __init__(self, world: World) -> None:
        self.of = {row["prompt_id"]: row["split"] for row in world.dataset}
        self.prompts, self.pairs = len(self.of), len(world.dataset)

    def splits(self, prompt_ids: Sequence[str]) -> list[str]:
        return [self.of[name] for name in prompt_ids]


class World:
    """Tables as the stages before ``export`` make them, from prompts, texts, points and pairs."""

    def __init__(self) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.responses: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.pairs: list[dict[str, Any]] = []
        self.dataset: list[dict[str, Any]] = []
        self.pairing: dict[str, Any] = {}
        """Settings of ``pair``."""

    def add(
        self,
        prompt: str | list[Message],
        texts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        split: str = "train",
        scores: Sequence[float | None] | None = None,
    ) -> str:
        name = f"{len(self.prompts):016x}"
        turns = [user(prompt)] if isinstance(prompt, str) else prompt
        self.prompts.append({"prompt_id": name, "prompt": turns})
        for number, text in enumerate(texts):
            response = {"response_id": f"{name}/{number:02d}", "prompt_id": name}
            self.responses.append({**response, "text": text, "author": f"model{number}"})
            score = scores[number] if scores else float(number)
            self.scores.append({"response_id": response["response_id"], "score": score})
        for chosen, rejected in pairs:
            pair = {"pair_id": f"{name}/{chosen:02d}>{rejected:02d}", "prompt_id": name}
            ids = {"chosen_id": f"{name}/{chosen:02d}", "rejected_id": f"{name}/{rejected:02d}"}
            self.pairs.append({**pair, **ids})
            self.dataset.append({**pair, "split": split})
        return name

    def write(self, folder: Path, model: Path | str, *formats: str, **settings: Any) -> Draft:
        """Run the stage's part that writes formats; the draft with its facts and files."""
        pointer = folder / "policy"
        pointer.mkdir(parents=True)
        pointed = {"model": str(model), "revision": ""}
        (pointer / "model.json").write_text(json.dumps(pointed))
        draft = Draft(folder / "out", "dataset", pa.schema([]), self.inputs(pointer), "export")
        draft.folder.mkdir()
        config = ExportConfig(formats=list(formats), **settings)
        assert not list(config.problems())
        export.write_formats(draft, config, Given(self))
        return draft

    def inputs(self, policy: Path) -> Any:
        """What ``write_formats`` asks of the artifacts."""
        allocation = [{**row, "kept": True, "depth": 0} for row in self.dataset]
        tables = {
            "allocation": pa.Table.from_pylist(allocation),
            "pairs": pa.Table.from_pylist(self.pairs),
            "prompts": pa.Table.from_pylist(self.prompts, PROMPTS),
            "responses": pa.Table.from_pylist(self.responses),
            "scores": pa.Table.from_pylist(self.scores, SCORES),
        }
        for name in ("allocation", "pairs"):
            tables[name] = tables[name].sort_by("pair_id")
        found = {
            name: SimpleNamespace(
                batches=lambda columns, table=table: [table.select(columns)],
                manifest={"settings": self.pairing},
            )
            for name, table in tables.items()
        }
        return found | {"policy": SimpleNamespace(folder=policy)}

    def texts(self) -> dict[str, tuple[list[Message], str, str]]:
        """Pair -> (prompt, chosen, rejected), as they were given."""
        text = {row["response_id"]: row["text"] for row in self.responses}
        turns = {row["prompt_id"]: row["prompt"] for row in self.prompts}
        return {
            row["pair_id"]: (
                turns[row["prompt_id"]], text[row["chosen_id"]], text[row["rejected_id"]]
            )
            for row in self.pairs
        }  # fmt: skip


def read(draft: Draft, name: str, split: str = "train") -> list[dict[str, Any]]:
    """The rows of one file of a format; none where there is no such file."""
    folder = draft.folder / "formats" / name
    if (folder / f"{split}.jsonl").exists():
        return [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
    path = folder / f"{split}.parquet"
    return pq.ParquetFile(path).read().to_pylist() if path.exists() else []


def left_out(draft: Draft, name: str) -> list[tuple[str, str]]:
    """What a format lacks, and why."""
    path = draft.folder / "formats" / name / "left_out.parquet"
    rows = pq.ParquetFile(path).read().to_pylist() if path.exists() else []
    return [tuple(row.values()) for row in rows]


def plain_pair(name: str, row: dict[str, Any]) -> tuple[list[Message], str, str]:
    """(prompt, chosen, rejected) back out of a row of a pairwise format."""
    if name in ("trl", "openrlhf"):
        return row["prompt"], *(row[side][0]["content"] for side in ("chosen", "rejected"))
    if name == "axolotl":
        return row["messages"], row["chosen"]["content"], row["rejected"]["content"]
    if name == "llamafactory":
        roles = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}
        turns = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
        return turns, row["chosen"]["value"], row["rejected"]["value"]
    if name == "nemo_rl":
        ranked = sorted(row["completions"], key=lambda one: one["rank"])
        return row["context"], *(one["completion"][0]["content"] for one in ranked)
    if name == "openai":
        sides = ("preferred_output", "non_preferred_output")
        return row["input"]["messages"], *(row[side][0]["content"] for side in sides)
    assert name == "conversations"
    assert row["chosen"][:-1] == row["rejected"][:-1], "only the last message differs"
    return row["chosen"][:-1], row["chosen"][-1]["content"], row["rejected"][-1]["content"]


def asked(prompt: list[Message], texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Asked:
    """A prompt as exporters get it, without tokens."""
    answers = [Answer(f"p/{n:02d}", text, "someone", float(n % 3)) for n, text in enumerate(texts)]
    made = [Pair(f"p/{c:02d}>{r:02d}", answers[c], answers[r]) for c, r in pairs]
    return Asked("p", "train", prompt, made, {one.response_id: one for one in answers})


def some() -> World:
    """Pairs that fit, that are cut, that are dropped; a system message; turns; typed tokens."""
    world = World()
    for number in range(10):
        texts = ["why? " * (1 + number * side) + f"{number} {side}\n" for side in range(4)]
        pairs = [(1, 0), (2, 0), (3, 1), (2, 1)][: 1 + number % 4]
        world.add("word " * (1 + 2 * number), texts, pairs, "test" if number % 5 == 0 else "train")
    earlier = [Message(role="system", content="be kind"), user("a"), *said("b"), user("c")]
    world.add(earlier, ["2020-01-01", "no é 漢 \u2028 \U0001f600"], [(1, 0)])
    world.add("type <|im_end|>", ["<|im_start|>user", "it"], [(1, 0)])
    return world


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen."""
    return model_folder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def world() -> World:
    return some()


def said(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def chatml(turns: list[Message]) -> str:
    """The template of the tiny Qwen, written by hand."""
    if turns[0]["role"] != "system":
        turns = [Message(role="system", content="You help."), *turns]
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
