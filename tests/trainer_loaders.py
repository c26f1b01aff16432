"""Reads exported formats with the trainers' own loaders; run in an environment that has them.

``python trainer_loaders.py FORMAT FOLDER TOKENIZER`` prints one JSON object: rows as the loader has
them after its own filter, for the train and test files, and how many it cuts. The trainers' code is
theirs; only what needs a GPU or the network is passed by.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import types
from pathlib import Path
from typing import Any

ENDLESS = 10**6


def openrlhf(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """RewardDataset with the flags that our flags.txt holds."""
    from openrlhf.datasets.reward_dataset import RewardDataset
    from openrlhf.datasets.utils import blending_datasets

    words = shlex.split((folder / "flags.txt").read_text())
    flags: dict[str, Any] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            flags[word[2:]] = True if after.startswith("--") else after
    strategy = types.SimpleNamespace(
        args=types.SimpleNamespace(
            use_ms=False,
            data=types.SimpleNamespace(
                **{name[5:]: value for name, value in flags.items() if name.startswith("data.")}
            ),
        ),
        print=lambda *words: None,
        is_rank_0=lambda: False,
    )
    made: dict[str, Any] = {"flags": sorted(flags)}
    for split, path, part in (
        ("train", flags["data.dataset"], flags["data.dataset_split"]),
        ("test", flags["eval.dataset"], flags["eval.split"]),
    ):
        rows = blending_datasets(str(folder / path), None, strategy, dataset_split=part)
        longest = int(flags["data.max_len"])
        cut, whole = (
            RewardDataset(rows, tokenizer, length, strategy, is_dpo=True, num_processors=1)
            for length in (longest, ENDLESS)
        )
        kept = set(cut.prompts)
        sizes = [
            max(len(item[0][0]), len(item[2][0]))
            for item, prompt in zip(
                map(whole.__getitem__, range(len(whole))), whole.prompts, strict=True
            )
            if prompt in kept
        ]
        made[split] = [
            {
                "prompt": cut.prompts[n],
                "chosen": tokenizer.decode(cut[n][0][0]),
                "rejected": tokenizer.decode(cut[n][2][0]),
            }
            for n in range(len(cut))
        ]
        made[f"{split}_cut"] = sum(size > longest for size in sizes)
    return made


def llamafactory(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The loader, the sharegpt converter and the pairwise processor, template read off tokenizer.

    torchaudio has no build for every torch; our rows hold no sound, so an empty module stands in.
    """
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor import PairwiseDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments

    longest = int((folder / "README.txt").read_text().split("cutoff_len=")[1].split()[0])
    model = ModelArguments(model_name_or_path="unused")
    training = types.SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    made: dict[str, Any] = {}
    for split in ("train", "test"):
        (found,) = get_dataset_list([f"bpo_{split}"], str(folder))
        assert found.ranking
        assert found.formatting == "sharegpt"
        sizes = []
        for length in (longest, ENDLESS):
            data = DataArguments(dataset_dir=str(folder), cutoff_len=length)
            rows = _load_single_dataset(found, model, data, training)
            template = get_template_and_fix_tokenizer(tokenizer, data)
            reader = PairwiseDatasetProcessor(template, tokenizer, None, data)
            encoded = reader.preprocess_dataset(rows[:])
            if length == longest:
                made[split] = [
                    {
                        "prompt": row["_prompt"],
                        "system": row["_system"],
                        "chosen": tokenizer.decode(chosen),
                        "rejected": tokenizer.decode(rejected),
                        "answers": row["_response"],
                    }
                    for row, chosen, rejected in zip(
                        rows,
                        encoded["chosen_input_ids"],
                        encoded["rejected_input_ids"],
                        strict=True,
                    )
                ]
            sizes.append(
                [
                    (len(chosen), len(rejected))
                    for chosen, rejected in zip(
                        encoded["chosen_input_ids"], encoded["rejected_input_ids"], strict=True
                    )
                ]
            )
        made[f"{split}_cut"] = sum(cut != whole for cut, whole in zip(*sizes, strict=True))
    return made


def axolotl(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """``_load_split`` with our dataset.yaml as the configuration, in the folder as README.txt says.

    Only load_tokenizer, which wants a whole model, is answered by us.
    """
    import yaml
    from axolotl.utils.data import rl
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.enums import RLType

    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    rl.load_tokenizer = lambda config: tokenizer
    rl.save_preprocessed_dataset = lambda *words: None
    config = DictDefault(yaml.safe_load((folder / "dataset.yaml").read_text()))
    assert RLType(config.rl) is RLType.DPO
    config.rl = RLType(config.rl)
    os.chdir(folder)
    return {split: list(rl._load_split(config, split)) for split in ("train", "test")}


def main() -> None:
    from transformers import AutoTokenizer

    name, folder, location = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    tokenizer = AutoTokenizer.from_pretrained(location)
    readers = {"openrlhf": openrlhf, "llamafactory": llamafactory, "axolotl": axolotl}
    made = readers[name](folder.resolve(), tokenizer)
    sys.stdout.flush()
    print("\n" + json.dumps(made))


if __name__ == "__main__":
    main()
