"""A disk or a memory that is used up, as libraries put it, is a line that a user can act on."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpo_data import faults
from bpo_data.errors import UserError
from bpo_data.pipelines import run
from bpo_data.scratch import Scratch, make_policy
from bpo_data.tables import Message


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What is larger cannot be written, as on a disk without room: the system's error is real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(5000)}, folder / "model.safetensors")


def tokenizer(folder: Path) -> None:
    talk = [Message(role="user", content="some words to learn from")]
    make_policy([talk], Scratch(width=16, heads=2), 0).tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("write", [weights, tokenizer])
def test_an_error_of_the_system_is_found_in_the_words_of_a_library(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with files_of_at_most(4096), pytest.raises(Exception, match="os error") as caught:
        write(tmp_path)
    assert not isinstance(caught.value, OSError), "else there was nothing to find"
    found = faults.known(caught.value, tmp_path, "sft")
    assert isinstance(found, OSError)
    assert (found.errno, found.filename) == (errno.EFBIG, str(tmp_path))


def test_a_checkpoint_that_finds_no_room_says_nothing_of_it_but_the_disk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.zeros(5000)}, "/dev/full")
    assert faults.known(caught.value, tmp_path, "sft") is None, "there is room: it is our own bug"
    monkeypatch.setattr(faults, "room", lambda folder: 4096)
    found = faults.known(caught.value, tmp_path, "sft")
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


def of_numpy() -> None:
    import numpy

    numpy.ones(2**50)


def of_torch() -> None:
    import torch

    torch.zeros(2**50)


def of_arrow() -> None:
    import pyarrow

    pyarrow.allocate_buffer(2**60)


def of_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (of_numpy, "this machine's memory"),
        (of_torch, "this machine's memory"),
        (of_arrow, "this machine's memory"),
        (of_a_gpu, "the GPU's memory"),
    ],
)
def test_memory_that_is_not_enough_is_a_line_with_the_way_out(
    tmp_path: Path, use: Callable[[], None], what: str
) -> None:
    with pytest.raises(Exception, match=r"alloc|memory") as caught:
        use()
    found = faults.known(caught.value, tmp_path, "train 2")
    assert isinstance(found, UserError)
    assert str(found).startswith(f"train 2: {what} was not enough (")
    assert "raise train.accumulate" in str(found)
    assert "\n" not in str(found)


def test_memory_that_ends_before_any_stage_is_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "answer", lambda *_: of_numpy())
    assert run.main(["stage=load"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("bpo_data: ")
    assert ": this machine's memory was not enough (" in told
    assert len(told.splitlines()) == 1


def test_our_own_bugs_and_what_users_mend_stay_as_they_are(tmp_path: Path) -> None:
    for error in (KeyError("scores"), ValueError("k"), UserError("train: out of memory")):
        assert faults.known(error, tmp_path, "train") is None
