"""Ctrl-C and SIGTERM: the first lets what is under way finish, the second ends at once.

Signals belong to a process, and so does the state here. A command is ``listening``; code that works
for long asks ``check`` where it can be left: between stages, parts, updates. As a
library, where nobody installed this, Ctrl-C is Python's own and nothing here ever stops anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from bpo_data.errors import harmless

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PASSED_ON = signal.SIGUSR1
"""How a process tells those that it made."""
GRACE = 3.0
"""Seconds that a second signal leaves for an orderly end. A call of C that never lets Python hear
of it is ended then; what is on disk is whole at any moment."""

doing = ""
"""The stage under way, for messages."""

_handled: list[signal.Signals] = []
_heard = 0
"""Signals that Python, or an event loop, has been told of."""
_seen = 0
"""Signals that the watching thread has been told of, or an event loop in its place."""
_quiet = False
_wake: list[socket.socket] = []
_first: list[Callable[[], None]] = []
_last: list[threading.Timer] = []


def install() -> None:
    """Take over the signals of this process. A signal that is ignored already (``nohup``, a
    shell's background job) stays so."""
    _take([one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN])


def follow() -> None:
    """Set up a process that another one made: signals to the whole group are that one's to judge,
    and ``pass_on`` tells this one to stop. It prints nothing."""
    global _quiet
    _quiet = True
    deafen()
    _take([PASSED_ON])


def pass_on(processes: Iterable[BaseProcess]) -> None:
    """Ask processes that ``follow`` to stop as this one is going to."""
    for process in processes:
        if process.pid and process.is_alive():
            os.kill(process.pid, PASSED_ON)


def deafen() -> None:
    """Hear no more signals: what is left to do is done in a moment, or is another's to judge."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _take(numbers: list[signal.Signals]) -> None:
    global _heard, _seen
    _heard, _seen = 0, 0
    _handled[:] = numbers
    for number in _handled:
        signal.signal(number, _hear)
    if not _wake:
        _wake.extend(socket.socketpair())
        for end in _wake:
            end.setblocking(False)
        threading.Thread(target=_watch, daemon=True, name="signals").start()
    _arm()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within, the signals of this process are ours; after it they are whose they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install()
    try:
        yield
    finally:
        global _heard
        _handled.clear()
        signal.set_wakeup_fd(-1)
        for timer in _last:
            timer.cancel()
        _last.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard = 0


def asked() -> bool:
    """Whether this process has been asked to stop."""
    return _heard > 0


def check() -> None:
    """Leave here if asked to. Raises KeyboardInterrupt."""
    if asked():
        raise KeyboardInterrupt


def at_once() -> bool:
    """Whether nothing more is to be waited for."""
    return _heard > 1


@contextlib.contextmanager
def told(callback: Callable[[], None]) -> Iterator[None]:
    """Within, the first signal also calls ``callback``, such as to pass it on."""
    _first.append(callback)
    try:
        yield
    finally:
        _first.remove(callback)


@contextlib.contextmanager
def cancels(task: asyncio.Task[Any]) -> Iterator[None]:
    """Within, on a running event loop, the first signal cancels ``task`` and the next one ends at
    once. Where nothing is installed SIGTERM does so, and Ctrl-C as asyncio has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _handled or (signal.SIGTERM,)}

    def stop() -> None:
        global _heard, _seen
        _heard, _seen = _heard + bool(_handled), _seen + bool(_handled)
        restore()
        task.cancel()

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        if _handled:
            _arm()

    for number in before:
        loop.add_signal_handler(number, stop)
    if asked():  # between the last look and here
        task.cancel()
    try:
        yield
    finally:
        restore()


def _arm() -> None:
    """Have the operating system's handler tell the watching thread, whatever Python is busy with;
    an event loop with handlers of its own takes that away."""
    signal.set_wakeup_fd(_wake[1].fileno(), warn_on_full_buffer=False)


def _hear(number: int, frame: Any) -> None:
    global _heard
    _heard += 1
    if at_once():
        raise KeyboardInterrupt
    for callback in list(_first):
        callback()


def _watch() -> None:
    """Say at once that a signal came, and end the process when a second one changes nothing."""
    global _seen
    end = _wake[0]
    end.setblocking(True)
    while True:
        (number,) = end.recv(1)  # before anything is added: an event loop may count meanwhile
        if number not in _handled:
            continue
        _seen += 1
        if _seen == 1 and not _quiet:
            what = f"what {doing} has under way" if doing else "what is under way"
            tell(f"stopping after {what} (again: at once)")
        elif _seen == 2:
            _last.append(threading.Timer(GRACE, _end))
            _last[-1].daemon = True
            _last[-1].start()


def _end() -> None:
    tell("stopped at once; the same command goes on from here.")
    os._exit(130)


def tell(text: str) -> None:
    """One line on stderr, clear of a progress bar."""
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{start}bpo_data: {harmless(text)}", file=sys.stderr, flush=True)
