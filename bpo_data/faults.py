"""A machine that runs out of room or of memory, as the libraries that meet it first put it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from bpo_data.errors import UserError

OF_A_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),
)
"""What a user mends by making room or naming another folder."""

IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust name the system's error, safetensors and tokenizers among them."""

WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")
"""Words of torch.save when a write fails; it does not say why."""

LITTLE = 2**20
"""Bytes; with less room than this a write that failed for no given reason failed for that."""

MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory"),
    *("can't start new thread", "failed to launch worker thread"),
)
"""Words of torch, FAISS, the loader of libraries, Python itself and Arrow, in small letters."""

LESS = {
    "sft": "raise sft.accumulate, or set sft.gradient_checkpointing=true",
    "augment": "lower augment.batch",
    "gradients": "lower gradients.batch_tokens or runtime.processes",
    "cluster": "lower gradients.dim",
    "allocate": "lower gradients.dim",
    "train": "raise train.accumulate, or set train.gradient_checkpointing=true",
    "evaluate": "lower evaluate.batch",
    "report": "lower report.points",
}
"""What makes a stage need less."""


def known(error: BaseException, folder: Path, stage: str) -> Exception | None:
    """The error of a stage as one that a user can mend; None for our own bugs.

    An OSError of ``OF_A_DISK`` for a disk, a UserError for memory.
    """
    return of_disk(error, folder) or of_memory(error, stage)


def of_disk(error: BaseException, folder: Path) -> OSError | None:
    """The fault of the disk below ``folder`` behind a library's own error."""
    text = str(error)
    found = IN_WORDS.search(text)
    if found and int(found[1]) in OF_A_DISK:
        number = int(found[1])
    elif any(word in text for word in WRITER) and room(folder) < LITTLE:
        number = errno.ENOSPC
    else:
        return None
    return OSError(number, os.strerror(number), str(folder))


def room(folder: Path) -> int:
    """Bytes that can still be written below a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def of_memory(error: BaseException, stage: str) -> UserError | None:
    """A line on memory, of this machine or a GPU's, with the way out for the stage."""
    text = " ".join(str(error).split())
    words = any(word in text.lower() for word in MEMORY)
    if isinstance(error, UserError) or not (isinstance(error, MemoryError) or words):
        return None
    reason = text.rpartition("Allocator: ")[2][:160] or "out of memory"
    what = "the GPU's memory" if text.startswith(("CUDA", "HIP")) else "this machine's memory"
    name = stage.partition(" ")[0]
    less = f", or {LESS[name]}" if name in LESS else ""
    return UserError(
        f"{stage}: {what} was not enough ({reason}). Give the run more of it{less}, and run it "
        f"again; what is finished is kept."
    )
