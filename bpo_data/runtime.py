"""How and where a run works: speed and place, never what comes out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpo_data.errors import UserError


@dataclass
class Runtime:
    """Never part of an artifact's key, so nothing here may change what is asked for.

    ``device`` and ``threads`` can change the last bits of what a model computes, since sums are
    added in another order; everything else comes out the same.
    """

    folder: str = "runs"
    """Where artifacts are kept; relative to the folder the command is started in."""

    device: str = "auto"
    """``auto`` (a GPU when torch sees one), ``cpu`` or ``cuda``."""

    threads: int = 1
    """CPU threads of torch and FAISS. On small models more threads are slower, not faster."""

    concurrency: int = 16
    """Requests to a language-model server under way at once."""

    store: str = ""
    """The request store, a SQLite file; empty means ``requests.sqlite`` in ``runtime.folder``."""

    def problems(self) -> Iterator[str]:
        if self.device not in ("auto", "cpu", "cuda"):
            yield f"runtime.device={self.device}: choose auto, cpu or cuda."
        if self.threads < 1:
            yield f"runtime.threads={self.threads}: use at least 1."
        if self.concurrency < 1:
            yield f"runtime.concurrency={self.concurrency}: use at least 1."

    def store_path(self) -> Path:
        """The request store of this run; its folder is made."""
        path = Path(self.store or Path(self.folder) / "requests.sqlite")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def torch_device(self) -> str:
        """``cpu`` or ``cuda``, with torch's threads set. Raises UserError when there is no GPU."""
        import torch

        torch.set_num_threads(self.threads)
        present = torch.cuda.is_available()
        if self.device == "cuda" and not present:
            raise UserError("runtime.device=cuda but torch sees no GPU. Use runtime.device=cpu.")
        return "cuda" if present and self.device != "cpu" else "cpu"


def quiet_libraries() -> None:
    """No pings, no trackers, no forks of tokenizers' threads; whatever the user set stays."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_DISABLED": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
