"""Python in processes of its own that need not import all anew.

One process imports the heavy packages, starts nothing and waits. What a test asks for is forked
from it and goes on as ``python -m module`` or ``python -c code``, with an environment, a folder,
streams and an end of its own. Two things are those of the waiting process: what is imported, and
the seed of ``hash()``. What is about one of them wants ``subprocess``.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

SERVER = Path(__file__).with_name("fork_server.py")
READ_AT_IMPORT = ("CUDA_", "HF_", "MKL_", "OMP_", "OPENAI_LOG", "OPENBLAS_", "PYTHON")
"""Beginnings of the names of variables that packages, or Python, read as they are loaded."""


class Forked:
    """As much of ``subprocess.Popen`` as the tests ask for, with text on both streams."""

    def __init__(self, pid: int, out: int, error: int, ending: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[str] = open(out, encoding="utf-8")  # noqa: SIM115 (as Popen has it)
        self.stderr: IO[str] = open(error, encoding="utf-8")  # noqa: SIM115 (as Popen has it)
        self.ending = ending

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.ending], [], [], 0)[0]:
            self.returncode = int(os.read(self.ending, 16))
            os.close(self.ending)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.ending], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        said = {self.stdout: "", self.stderr: ""}
        readers = [
            threading.Thread(target=lambda one=one: said.update({one: one.read()}), daemon=True)
            for one in said
            if not one.closed
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said[self.stdout], said[self.stderr]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


@functools.cache
def waiting() -> tuple[socket.socket, dict[str, str]]:
    """The way to the process that forks, which starts with the first question, and what it read."""
    here, there = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with there:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(there.fileno())],
            env=environment, pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    atexit.register(process.wait)
    atexit.register(here.close)
    return here, read_at_import(environment)


def read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"
    }


def fork(
    words: list[str],
    environment: dict[str, str],
    folder: str | os.PathLike[str] | None = None,
    start_new_session: bool = False,
) -> Forked:
    """What comes after ``python`` on a command line, with both streams in pipes."""
    way, read = waiting()
    assert read_at_import(environment) == read, "imports would meet another environment"
    asked = json.dumps(
        {
            "words": words,
            "environment": environment,
            "folder": str(folder or Path.cwd()),
            "session": start_new_session,
        }
    ).encode()
    pipes = [os.pipe() for _ in range(3)]
    socket.send_fds(way, [len(asked).to_bytes(4, "big")], [into for _, into in pipes])
    way.sendall(asked)
    for _, into in pipes:
        os.close(into)
    pid = int.from_bytes(received(way, 4), "big")
    return Forked(pid, *(out for out, _ in pipes))


def received(way: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = way.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content
