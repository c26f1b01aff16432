"""Machines of a cluster that share no disk, and a server that speaks S3."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from clusters import Nodes, wait_for
from making import Shifted, shift

from bpo_data.runtime import Runtime

NUMBER = 1_000


def can_s3() -> bool:
    return find_spec("moto") is not None and find_spec("s3fs") is not None


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server that speaks S3: what the environment says of it."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port))
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


class World:
    """A driver's folder, which no machine of the cluster sees, and what it has made there."""

    def __init__(self, nodes: Nodes, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.driver, self.notes = folder / "driver", folder / "notes"
        self.runs = self.driver / "runs"
        self.read = shift(self.runs, NUMBER)

    def machine(self, name: str, workers: int = 1) -> int:
        """One more, with a disk of its own."""
        return self.nodes.add_apart(self.driver, workers, BPO_FETCHED=self.folder / name)

    def runtime(self, mirror: str | None = None, processes: int = 2) -> Runtime:
        return Runtime(
            device="cpu",
            engine="ray",
            processes=processes,
            address="given",
            folder=str(self.runs),
            mirror=f"file://{self.folder}/mirror" if mirror is None else mirror,
        )

    def shifted(self, seconds: float = 0.0, fault: str = "", **more: object) -> Shifted:
        """Reads what is in the artifact."""
        folder = str(self.read.folder / "model")
        return Shifted(self.notes, seconds, fault=fault, folder=folder, **more)  # type: ignore[arg-type]  # of Squares

    def places(self) -> set[str]:
        """Where workers have read, from the folder of the world."""
        found = (Path(path.read_text()) for path in self.notes.glob("read-*"))
        return {path.relative_to(self.folder).parts[0] for path in found}


def encoder(folder: Path) -> Path:
    """A tiny sentence encoder of letters, with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *"abcdefghij"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=16, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder
