"""Ctrl-C and SIGTERM: once finishes what is under way, twice ends at once, both resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forking import Forked, fork
from helpers import TINY, environment, run, start


def wait_for(found, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found(), "it never came so far"


def digests(folder: Path) -> dict[str, str]:
    manifests = [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]
    return {one["stage"]: one["digest"] for one in manifests}


def python(code: str, *arguments: str) -> Forked:
    return fork(["-c", code, *arguments], environment())


STOPS_AT = """
import os, signal, sys
from transformers import TrainerCallback
from bpo_data import training
from bpo_data.pipelines.run import main

class Signal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 25:
            os.kill(os.getpid(), signal.SIGTERM)

trained = training.train

def train(trainer, bar):
    trainer.add_callback(Signal())
    return trained(trainer, bar)

training.train = train
sys.exit(main(sys.argv[1:]))
"""


def test_training_stops_after_its_update_and_goes_on_to_the_same_weights(tmp_path):
    """Stopped within an epoch, after others: the order of the rows has to be found again too."""
    arguments = ("stage=sft", *TINY, "sft.keep_moments=true")
    stopped = tmp_path / "stopped"
    process = python(STOPS_AT, *arguments, f"runtime.folder={stopped}")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "stopping after what sft has under way" in error
    assert "stopped in sft; the same command goes on from here" in error
    assert "Traceback" not in error
    (checkpoint,) = stopped.glob("sft-*.partial/.resume/trainer/checkpoint-*")
    assert checkpoint.name == "checkpoint-26"

    again = run(*arguments, f"runtime.folder={stopped}")
    assert again.returncode == 0, again.stderr
    assert "going on after an interruption" in again.stderr
    (log,) = stopped.glob("sft-*/policy.parquet")
    steps = pq.read_table(log)["step"].to_pylist()
    assert steps == sorted(set(steps)), "no update was logged twice"
    assert not list(stopped.glob("sft-*/.resume"))
    unbroken = run(*arguments, f"runtime.folder={tmp_path}/unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    assert digests(stopped) == digests(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    arguments = ("stage=sft", *TINY, "sft.steps=400")
    killed, saving = tmp_path / "killed", "sft.save_steps=20"
    process = start(*arguments, saving, f"runtime.folder={killed}")
    wait_for(lambda: list(killed.glob("sft-*.partial/.resume/trainer/checkpoint-*/whole")))
    process.kill()
    process.communicate(timeout=60)
    left = [int(path.parent.name.rpartition("-")[2]) for path in killed.glob("sft-*/**/whole")]
    assert left
    assert max(left) < 400
    again = run(*arguments, saving, f"runtime.folder={killed}")
    assert again.returncode == 0, again.stderr
    unbroken = run(*arguments, f"runtime.folder={tmp_path}/unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    assert digests(killed) == digests(tmp_path / "unbroken")


def test_two_signals_end_at_once_and_the_run_goes_on(tmp_path):
    arguments = ("stage=sft", *TINY, "sft.steps=100000", f"runtime.folder={tmp_path}")
    process = start(*arguments)
    wait_for(lambda: list(tmp_path.glob("sft-*.partial")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    short = tuple(word for word in arguments if not word.startswith("sft.steps"))
    assert run(*short, "sft.steps=2").returncode == 0


def test_a_part_under_way_is_finished_and_the_next_not_begun(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
import pyarrow as pa
from bpo_data import stopping
from bpo_data.artifacts import Draft
from bpo_data.engines import at
from bpo_data.tables import columns

stopping.install()
schema = columns(n=pa.int32())
draft = Draft(Path({str(tmp_path)!r}), "numbers", schema, {{}}, "count")

def make(part):
    print(part["n"][0], flush=True)
    time.sleep(0.7)
    return part

rows = pa.table({{"n": pa.array(range(6), pa.int32())}}, schema=schema)
try:
    draft.map_parts(rows, at(make), 2)
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = python(code)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "stopping after what is under way" in error
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["numbers-00000.parquet"]
    assert out == ""


def test_the_second_signal_ends_a_process_that_python_never_hears_in(tmp_path):
    """A call of C that goes on and on, with the interpreter free for other threads."""
    code = """
import ctypes
from bpo_data import stopping
stopping.GRACE = 0.2
stopping.install()
libc = ctypes.CDLL(None)
def asleep():
    print("asleep", flush=True)
    while True:
        libc.poll(None, 0, 60_000)
class Deaf:
    def __init__(self): self.stubborn = True
import signal
real = stopping._hear
def deaf(number, frame):
    try:
        real(number, frame)
    except KeyboardInterrupt:
        pass  # as a library's callback would
for number in stopping.SIGNALS:
    signal.signal(number, deaf)
asleep()
"""
    process = python(code)
    process.stdout.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - started < 15
    assert "stopped at once" in error


def test_an_ignored_signal_stays_ignored():
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from bpo_data import stopping
stopping.install()
os.kill(os.getpid(), signal.SIGINT)
assert not stopping.asked()
os.kill(os.getpid(), signal.SIGTERM)
assert stopping.asked()
"""
    process = python(code)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 0, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_parts_in_workers_are_finished_too(tmp_path, number):
    """Ctrl-C reaches the whole group, and so does SIGTERM from a batch system."""
    (tmp_path / "slow_parts.py").write_text(
        "import time\n"
        "def set_up(place):\n"
        "    def make(part):\n"
        "        open(f'{part[\"n\"][0]}.begun', 'w').close()\n"
        "        time.sleep(1.0)\n"
        "        return part\n"
        "    return make\n"
    )
    (tmp_path / "main.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import pyarrow as pa\n"
        "from bpo_data import stopping\n"
        "from bpo_data.artifacts import Draft\n"
        "from bpo_data.tables import columns\n"
        "from bpo_data.engines.processes import Processes\n"
        "from bpo_data.runtime import Runtime\n"
        "from slow_parts import set_up\n"
        "if __name__ == '__main__':\n"
        "    stopping.install()\n"
        "    schema = columns(n=pa.int32())\n"
        "    Path('parts').mkdir()\n"
        "    engine = Processes(Runtime(processes=2))\n"
        "    draft = Draft(Path('parts'), 'numbers', schema, {}, 'count', engine)\n"
        "    rows = pa.table({'n': pa.array(range(12), pa.int32())}, schema=schema)\n"
        "    try:\n"
        "        draft.map_parts(rows, set_up, 1)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{tmp_path}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) >= 2)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    begun = len(list(tmp_path.glob("*.begun")))
    assert len(list((tmp_path / "parts").glob("numbers-*.parquet"))) == begun == 2


def test_a_process_that_goes_on_after_two_signals_is_left_alone():
    """The forced end belongs to the command, not to the program that called it."""
    code = """
import os, signal, sys, time
from bpo_data import stopping
stopping.GRACE = 0.3
try:
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
except KeyboardInterrupt:
    pass
time.sleep(1)
with stopping.listening():
    assert not stopping.asked()
print("went on")
"""
    out, error = python(code).communicate(timeout=30)
    assert out == "went on\n", error
    assert error.count("stopping after") == 1


def test_an_event_loop_and_the_watcher_count_together():
    """The first signal within a loop, the second after it: said once, and the end is at once."""
    code = """
import asyncio, os, signal, sys
from bpo_data import stopping
async def work():
    with stopping.cancels(asyncio.current_task()):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(10)
with stopping.listening():
    try:
        asyncio.run(work())
    except asyncio.CancelledError:
        assert stopping.asked() and not stopping.at_once()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("at once", stopping._seen == stopping._heard == 2 or stopping._seen)
"""
    out, error = python(code).communicate(timeout=30)
    assert out.startswith("at once"), error
    assert "stopping after" not in error, "whoever drains the loop says it"
