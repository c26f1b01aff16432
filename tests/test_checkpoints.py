"""Model folders that want to run code: it does not run, whoever loads them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from bpo_data import checkpoints
from bpo_data.components.embedders import Encoder
from bpo_data.components.exporters.target import find_target
from bpo_data.components.reward_model import RewardModel
from bpo_data.errors import UserError
from bpo_data.evaluation.opponent import load_opponent
from bpo_data.llm.desk import Desk
from bpo_data.policy import check_model, load_policy, save_policy
from bpo_data.reference import reference_of
from bpo_data.runtime import Runtime
from bpo_data.scratch import Scratch, make_policy
from bpo_data.tables import Message

TALKS = [[Message(role="user", content="add 1"), Message(role="assistant", content="= 2")]]
SMALL = Scratch(vocabulary=300, width=16, layers=1, heads=2, hidden=16, positions=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    save_policy(make_policy(TALKS, SMALL, seed=0), folder)
    return folder


class Trap:
    """What it unpickles to writes a file."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


@pytest.fixture
def trap(tmp_path: Path) -> str:
    """Code that leaves a trace when it runs."""
    return f"open({str(tmp_path / 'it ran')!r}, 'w').close()\n"


def edit(file: Path, **values: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | values))


def pickles_beside(folder: Path, trap: str) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "last.ckpt", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(trap)))


def unused_code(folder: Path, trap: str) -> None:
    """As on many models of the hub that transformers knows by now."""
    (folder / "own.py").write_text(trap)
    names = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoModel": "own.M"}
    edit(folder / "config.json", auto_map=names)
    edit(folder / "modules.json", modules=[{"idx": 0, "path": "", "type": "own.Module"}])


def code_of_the_model(folder: Path, trap: str) -> None:
    unused_code(folder, trap)
    edit(folder / "config.json", model_type="own")


def code_of_the_tokenizer(folder: Path, trap: str) -> None:
    (folder / "own.py").write_text(trap)
    names = {"AutoTokenizer": ["own.T", "own.T"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=names)


def pickled_shard(folder: Path, trap: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    (folder / "model-1.bin").write_bytes(pickle.dumps(Trap(trap)))
    names = {"a": "model-1.bin", "b": "model-2.safetensors"}
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map=names)


def shard_elsewhere(folder: Path, trap: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    shutil.copy(folder.parent / "elsewhere.safetensors", folder / "other.safetensors")
    names = {"a": "../elsewhere.safetensors"}
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map=names)


def pickled_adapter(folder: Path, trap: str) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(trap)))
    edit(folder / "adapter_config.json", peft_type="LORA", r=2, target_modules=["q_proj"])


def kernel_of_the_hub(folder: Path, trap: str) -> None:
    edit(folder / "config.json", _attn_implementation="own/kernel")


HARMLESS = (pickles_beside, unused_code)
REFUSED = (code_of_the_model, code_of_the_tokenizer, pickled_shard, shard_elsewhere)
REFUSED_MODELS = (*REFUSED, pickled_adapter, kernel_of_the_hub)


def encoded(folder: Path) -> Any:
    return Encoder(str(folder))(["add 1"], 0, Desk("embed", Runtime(device="cpu")))


def rated(folder: Path) -> RewardModel:
    return RewardModel(str(folder))


LOADERS = {
    "sft.model": lambda folder: load_policy(str(folder), None, "cpu", "float32"),
    "evaluate.against": lambda folder: load_opponent(str(folder), "cpu", "float32"),
    "gradients.reference": lambda folder: reference_of(
        str(folder), "", type("Engine", (), {"batch_tokens": 64})(), "cpu", "float32"
    ),
    "embed.options.model": encoded,
    "score.options.model": lambda folder: (
        rated(folder).reader(),
        rated(folder).load(str(folder), "cpu"),
    ),
}


def prepared(model: Path, tmp_path: Path, trap: str, spoil: Any, classifier: bool) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    if classifier:
        config = transformers.AutoConfig.from_pretrained(folder, num_labels=1)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    spoil(folder, trap)
    return folder


@pytest.mark.parametrize("setting", LOADERS)
@pytest.mark.parametrize("spoil", [*HARMLESS, *REFUSED_MODELS], ids=lambda one: one.__name__)
def test_no_code_of_a_model_folder_runs(model, tmp_path, trap, setting, spoil):
    folder = prepared(model, tmp_path, trap, spoil, classifier=setting.startswith("score"))
    if spoil in HARMLESS:
        LOADERS[setting](folder)
    else:
        with pytest.raises(UserError) as caught:
            LOADERS[setting](folder)
        assert str(caught.value).startswith(f"{setting}={folder}")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "it ran").exists()


def test_a_tokenizer_that_brings_code_is_refused_for_an_export(model, tmp_path, trap):
    folder = prepared(model, tmp_path, trap, code_of_the_tokenizer, classifier=False)
    with pytest.raises(UserError, match=r"export\.tokenizer=.*code of its own, which is not run"):
        find_target(str(folder), tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_code_runs_only_for_a_model_that_the_environment_names(model, tmp_path, trap, monkeypatch):
    folder = prepared(model, tmp_path, trap, code_of_the_model, classifier=False)
    own = "from transformers import LlamaConfig\nclass C(LlamaConfig):\n    model_type = 'own'\n"
    (folder / "own.py").write_text(own + trap)
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    for names in ("", "another/model", str(folder) + "2", str(folder.parent)):
        monkeypatch.setenv(checkpoints.TRUSTED, names)
        with pytest.raises(UserError, match=f"{checkpoints.TRUSTED}={folder}"):
            check_model(str(folder), None)
        assert not (tmp_path / "it ran").exists()
    monkeypatch.setenv(checkpoints.TRUSTED, f"another/model, {folder}")
    check_model(str(folder), None)
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", ["[]", "5", "null", "{", '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_a_model_that_is_not_what_it_claims_is_one_line(model, tmp_path, name, content):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_policy(str(folder), None, "cpu", "float32")
    assert str(caught.value).startswith(f"sft.model={folder} cannot be loaded: ")
    assert str(caught.value).isprintable()
