"""The process that waits for ``forking.fork``: it imports, forks, and tells who ended how."""

from __future__ import annotations

import atexit
import contextlib
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
import sys
import threading
import time
import types
from typing import Any

from forking import received

HEAVY = """
datasets faiss jinja2.ext omegaconf openai.resources.chat.completions peft pyarrow.parquet
scipy.stats sklearn.cluster sklearn.neighbors torch torch._dynamo transformers.trainer
transformers.models.llama.modeling_llama trl.trainer.dpo_trainer trl.trainer.sft_trainer
"""


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
    endings: dict[int, int] = {}  # pid of a child -> where to tell of its end
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([way, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            tell(endings)
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
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (*descriptors, *endings.values(), woken, wake):
                os.close(one)
            way.close()
            return asked
        endings[pid] = descriptors[2]
        os.close(descriptors[0])
        os.close(descriptors[1])
        way.sendall(pid.to_bytes(4, "big"))


def tell(endings: dict[int, int]) -> None:
    """Write the status of each child that has ended to whoever waits for it."""
    for pid in [*endings]:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ending = endings.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(ending, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(ending)


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
