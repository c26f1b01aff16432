"""What others trained, loaded so that it cannot run code: no pickles, no code of the checkpoint.

Two things allow more: whoever starts the command names the model in ``BPO_TRUSTED_MODELS``, and
nobody else can, for recipes and models travel while the environment does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpo_data.errors import UserError, plain

TRUSTED = "BPO_TRUSTED_MODELS"
"""Environment variable: folders and hub names, with commas between them, as settings name them."""

LONGEST = 300
"""Characters shown of what a library says."""


def trusted(model: str) -> bool:
    """Whether this model's code may run and its pickles may be read."""
    names = os.environ.get(TRUSTED, "").split(",")
    return bool(model) and model in [name.strip() for name in names]


def options(model: str, revision: str | None) -> dict[str, Any]:
    """What every ``from_pretrained`` is told of the model."""
    return {"revision": revision or None, "trust_remote_code": trusted(model)}


def weights(model: str, revision: str | None) -> dict[str, Any]:
    """``options``, and which files of weights may be read: None leaves the choice to the library,
    which reads pickles as numbers alone."""
    return options(model, revision) | {"use_safetensors": None if trusted(model) else True}


@contextmanager
def loading(model: str, setting: str, way_out: str) -> Iterator[None]:
    """Within, whatever the libraries raise becomes a UserError: what is wrong with files that
    others wrote they tell in every kind of exception, bare ``Exception`` among them."""
    try:
        yield
    except Exception as error:  # bare ones among them, from whatever reads a strange file
        raise UserError(
            f"{setting}={model} cannot be loaded: {why_not(model, error)} {way_out}"
        ) from error


def why_not(model: str, error: BaseException) -> str:
    """The words of a library that did not load a model, on one line, with a way out where its own
    would run the code of the checkpoint."""
    if "trust_remote_code" in str(error):
        return (
            f"it needs code of its own, which is not run. If you have read that code and trust "
            f"it, set {TRUSTED}={model}."
        )
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return plain(said)[:LONGEST]


def check_folder(model: str, setting: str) -> None:
    """Raise UserError for a folder whose files would have pickles read, or files outside it."""
    folder = Path(model)
    if trusted(model) or not folder.is_dir():
        return
    for reason in (*strange_shards(folder), *pickled_adapter(folder)):
        raise UserError(
            f"{setting}={model}: {reason}. Save it again with save_pretrained(...), or, if you "
            f"trust it, set {TRUSTED}={model}."
        )


def strange_shards(folder: Path) -> Iterator[str]:
    """Files that an index names and that are no safetensors files of the same folder."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except Exception as error:  # noqa: BLE001  whatever stands there in place of an index
            yield f"{index.name} cannot be read ({plain(str(error))[:LONGEST]})"
            return
        for shard in sorted(map(str, shards)):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                yield f"{index.name} names {plain(shard)[:LONGEST]}, no safetensors file beside it"
                return


def pickled_adapter(folder: Path) -> Iterator[str]:
    """An adapter beside the model that is there as a pickle alone."""
    if (folder / "adapter_config.json").is_file() and not any(
        folder.glob("adapter_model*.safetensors")
    ):
        yield "its adapter has no safetensors weights"
