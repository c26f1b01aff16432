"""Python in processes of its own that need not import all anew.

One process imports the heavy packages, starts nothing and waits. What a test asks for is forked
from it and goes on as ``python -m module`` or ``python -c code``, with an environment, a folder,
streams and an end of its own. Two things are those of the waiting process: what is imported, and
the seed of ``hash()``. What is about one of them wants ``subprocess``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import IO, Any

HEAVY = """
datasets faiss jinja2.ext omegaconf openai.resources.chat.completions peft pyarrow.parquet
scipy.stats sklearn.cluster sklearn.neighbors torch torch._dynamo transformers.trainer
transformers.models.llama.modeling_llama trl.trainer.dpo_trainer trl.trainer.sft_trainer
"""
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
            [sys.executable, __file__, str(there.fileno())],
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


def load() -> None:
    """Import what runs import; they start threads and read settings after they are forked."""
    from bpo_data.runtime import quiet_libraries

    quiet_libraries()
    import bpo_data

    for name in HEAVY.split():
        importlib.import_module(name)
    for module in pkgutil.walk_packages(bpo_data.__path__, "bpo_data."):
        # What is run by ``-m`` must not have been imported before.
        if module.name != "bpo_data.pipelines.run" and "__main__" not in module.name:
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()


def serve(way: socket.socket) -> dict[str, Any]:
    """Fork for whoever asks, and tell their status of who ended; returns in each child."""
    endings: dict[int, tuple[int, int]] = {}  # descriptor of a child -> its pid, where to tell
    while True:
        ready, _, _ = select.select([way, *endings], [], [])
        for child in ready:
            if child is not way:
                pid, ending = endings.pop(child)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                    os.write(ending, str(code).encode())
                os.close(ending)
                os.close(child)
        if way not in ready:
            continue
        head, descriptors, _, _ = socket.recv_fds(way, 4, 3)
        if not head:
            sys.exit()  # the process with the tests has ended
        head += received(way, 4 - len(head)) if len(head) < 4 else b""
        asked = json.loads(received(way, int.from_bytes(head, "big")))
        pid = os.fork()
        if not pid:
            os.dup2(descriptors[0], 1)
            os.dup2(descriptors[1], 2)
            for child, (_, ending) in endings.items():
                os.close(child)
                os.close(ending)
            for one in descriptors:
                os.close(one)
            way.close()
            return asked
        endings[os.pidfd_open(pid)] = pid, descriptors[2]
        os.close(descriptors[0])
        os.close(descriptors[1])
        way.sendall(pid.to_bytes(4, "big"))


def become(asked: dict[str, Any]) -> None:
    """Go on as Python does with that command line; returns or raises as the code does."""
    if asked["session"]:
        os.setsid()
    os.chdir(asked["folder"])
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    paths = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    kind, what, *arguments = asked["words"]
    sys.path[:] = [
        asked["folder"] if kind == "-m" else "",
        *paths,
        *(one for one in sys.path[1:] if one not in {*paths, *inherited}),
    ]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    import numpy as np

    np.random.seed()
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def live(asked: dict[str, Any]) -> None:
    """Run and end as Python does, but for taking apart all that is imported, which takes long."""
    status, interrupted = 0, False
    try:
        become(asked)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 (Python's last resort)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        os._exit(120)
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


if __name__ == "__main__":
    server = socket.socket(fileno=int(sys.argv[1]))
    load()
    live(serve(server))
