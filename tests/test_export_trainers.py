"""Each format against its trainer: TRL's own trainers, others' own loaders, or their documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from exporting import ALL, LONGEST, World, chatml, plain_pair, read

from bpo_data.artifacts import Draft
from bpo_data.components.exporters import KINDS
from bpo_data.policy import encode, load_policy


@pytest.fixture(scope="module")
def draft(qwen: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return world.write(tmp_path_factory.mktemp("x"), qwen, *ALL, max_length=LONGEST)


def loaded(draft: Draft, name: str, cache: Path) -> Any:
    """The format's splits by ``datasets``, from the files that its README.txt names."""
    import datasets

    folder = draft.folder / "formats" / name
    suffix = KINDS[name]().suffix
    files = {split: str(folder / f"{split}{suffix}") for split in ("train", "test")}
    kind = {".parquet": "parquet", ".jsonl": "json"}[suffix]
    return datasets.load_dataset(kind, data_files=files, cache_dir=str(cache))


@pytest.mark.parametrize("name", ALL)
def test_datasets_reads_each_folder_with_the_declared_columns(draft, name, tmp_path):
    import datasets

    whole = datasets.load_dataset(str(draft.folder / "formats" / name), cache_dir=str(tmp_path))
    named = loaded(draft, name, tmp_path)
    columns = KINDS[name]().columns
    for split in ("train", "test"):
        assert whole[split].column_names == columns.names
        assert whole[split].to_list() == named[split].to_list() == read(draft, name, split)
        if KINDS[name]().suffix == ".parquet":
            assert whole[split].features == datasets.Features.from_arrow_schema(columns)


@pytest.mark.parametrize("name", ALL)
def test_no_prompt_is_in_both_splits(draft, name):
    def prompts(split: str) -> set[str]:
        rows = read(draft, name, split)
        if name in ("kto", "listwise"):
            return {json.dumps(row["prompt"]) for row in rows}
        return {json.dumps(plain_pair(name, row)[0]) for row in rows}

    assert prompts("train")
    assert prompts("test")
    assert not prompts("train") & prompts("test")


def arguments(config: type, folder: Path, **others: Any) -> Any:
    return config(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        max_length=LONGEST, **others,
    )  # fmt: skip


def trainer_of(
    trainer: type, config: type, draft: Draft, name: str, qwen: Path, folder: Path
) -> tuple[Any, dict[str, Any]]:
    """A trainer of TRL's over both splits of the format, and the facts of the export."""
    import copy

    rows = loaded(draft, name, folder / "cache")
    policy = load_policy(str(qwen), None, "cpu", "float32")
    made = trainer(
        policy.model, copy.deepcopy(policy.model), arguments(config, folder),
        train_dataset=rows["train"], eval_dataset=rows["test"], processing_class=policy.tokenizer,
    )  # fmt: skip
    facts = draft.facts["formats"][name]
    assert len(made.train_dataset) == facts["pairs"] < len(rows["train"])
    return made, facts


def test_trls_dpo_trainer_keeps_drops_and_cuts_what_the_facts_say(draft, qwen, tmp_path):
    from trl import DPOConfig, DPOTrainer

    trainer, facts = trainer_of(DPOTrainer, DPOConfig, draft, "trl", qwen, tmp_path)
    tokenizer = trainer.processing_class
    made = [*trainer.train_dataset]
    sizes = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in made
    ]
    assert sum(size > LONGEST for size in sizes) == facts["cut"] > 0
    alike = 0
    for row in made:
        sides = [row[side] for side in ("chosen_ids", "rejected_ids")]
        assert [side.count(tokenizer.eos_token_id) for side in sides] == [1, 1]
        first, second = (side[: LONGEST - len(row["prompt_ids"])] for side in sides)
        alike += first == second
    assert alike == facts["alike"] > 0
    for ours, theirs in zip(read(draft, "trl", "test"), trainer.eval_dataset, strict=False):
        text = ours["chosen"][0]["content"]
        before, after = encode(tokenizer, ours["prompt"], text)
        assert (theirs["prompt_ids"], theirs["chosen_ids"]) == (before, after)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_trls_kto_trainer_keeps_drops_and_cuts_what_the_facts_say(draft, qwen, tmp_path):
    from trl import KTOConfig, KTOTrainer

    trainer, facts = trainer_of(KTOTrainer, KTOConfig, draft, "kto", qwen, tmp_path)
    made = [*trainer.train_dataset]
    sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in made]
    assert sum(size > LONGEST for size in sizes) == facts["cut"] > 0
    end = trainer.processing_class.eos_token_id
    assert all(row["completion_ids"].count(end) == 1 for row in made)
    trainer.train()
    assert trainer.state.global_step == 2


def test_kto_rows_are_shuffled_by_the_seed_and_lose_nothing(world, qwen, tmp_path):
    def order(seed: int, folder: str) -> list[str]:
        made = world.write(tmp_path / folder, qwen, "kto", seed=seed)
        return [json.dumps(row) for row in read(made, "kto")]

    first, again, other = order(0, "a"), order(0, "b"), order(1, "c")
    assert first == again != other
    assert sorted(first) == sorted(other)
    labels = [json.loads(row)["label"] for row in first]
    assert labels != sorted(labels, reverse=True), "not all chosen, then all rejected"


def test_nemo_rl_reads_pairs_and_gives_weight_0_to_long_ones(draft, qwen, world):
    """A reader after NeMo-RL at 7ea279ab: ``PreferenceDataset`` takes the JSON lines as they are;
    ``preference_preprocessor`` (data/processors.py) wants two completions of different rank, the
    lower one preferred, and gives weight 0 above max_seq_length; lengths are those of the whole
    conversation, written turn by turn (data/llm_message_utils.py). Its code has no package."""
    tokenizer = load_policy(str(qwen), None, "cpu", "float32").tokenizer
    rows = [*read(draft, "nemo_rl"), *read(draft, "nemo_rl", "test")]
    weights = []
    for row in rows:
        assert set(row) == {"context", "completions"}
        first, second = row["completions"]
        assert (first["rank"], second["rank"]) == (0, 1)
        sizes = [
            len(tokenizer(chatml([*row["context"], *one["completion"]]))["input_ids"])
            for one in (first, second)
        ]
        weights.append(float(max(sizes) <= LONGEST))
    facts = draft.facts["formats"]["nemo_rl"]
    trained = weights[: len(read(draft, "nemo_rl"))]
    assert len(weights) == len(world.pairs) > len(trained)
    assert trained.count(0.0) == facts["dropped"] > 0
    assert trained.count(1.0) == facts["pairs"] > 0
    assert facts["pairs"] + facts["dropped"] == len(trained)


def test_nemo_rls_snippet_names_our_files_as_its_loader_wants_them(draft):
    import yaml

    folder = draft.folder / "formats" / "nemo_rl"
    config = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert config["policy"] == {"max_total_sequence_length": LONGEST}
    for use in ("train", "validation"):
        asked = config["data"][use]
        assert asked["dataset_name"] == "PreferenceDataset"
        assert (folder / asked["data_path"]).is_file()
        assert asked["split"] == "train", "a file on its own has no other split"


def test_openai_lines_hold_one_assistant_message_each_side(draft, world):
    """OpenAI's guide "Direct preference optimization": three keys, one assistant message a side."""
    rows = [*read(draft, "openai"), *read(draft, "openai", "test")]
    assert len(rows) == len(world.pairs)
    for row in rows:
        assert set(row) == {"input", "preferred_output", "non_preferred_output"}
        assert row["input"]["messages"][-1]["role"] == "user"
        for side in ("preferred_output", "non_preferred_output"):
            assert [turn["role"] for turn in row[side]] == ["assistant"]
        assert row["preferred_output"] != row["non_preferred_output"]


def test_side_files_name_files_that_are_there_and_tell_no_place(draft):
    for name in ALL:
        folder = draft.folder / "formats" / name
        words = (folder / "README.txt").read_text()
        assert 2 <= len(words.splitlines()) <= 4
        assert "train" in words or name in ("openrlhf", "axolotl", "nemo_rl")
        assert str(draft.folder) not in side_texts(folder), "the folder is renamed when done"
        rows = {path.name for path in folder.iterdir() if FILE.fullmatch(path.name)}
        assert set(FILE.findall(side_texts(folder))) == rows - {"left_out.parquet"}


FILE = re.compile(r"\b(?:train|test|left_out)\.(?:parquet|jsonl)\b")


def side_texts(folder: Path) -> str:
    """All that stands beside the rows."""
    kinds = (".txt", ".yaml", ".json")
    return "\n".join(path.read_text() for path in folder.iterdir() if path.suffix in kinds)


@pytest.mark.parametrize("test", [True, False])
def test_a_format_without_rows_to_train_on_says_so_and_names_no_file_it_lacks(qwen, tmp_path, test):
    world = World()
    for number in range(12):
        world.add(f"{number} <|im_end|>", ["no", "yes"], [(1, 0)])
    if test:
        world.add("plain", ["no", "yes"], [(1, 0)], "test")
    draft = world.write(tmp_path, qwen, *ALL, special_tokens="leave_out")
    for name in ALL:
        folder = draft.folder / "formats" / name
        files = {path.name for path in folder.iterdir()}
        rows = {f"test{KINDS[name]().suffix}"} if test else set()
        assert files == {"README.txt", "left_out.parquet", *rows}
        assert "nothing to train on" in side_texts(folder)
        assert set(FILE.findall(side_texts(folder))) == {"left_out.parquet", *rows}
