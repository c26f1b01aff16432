"""How and where a run works: speed and place, never what comes out."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bpo_data.budget import Budget
from bpo_data.cards.privacy import SECRET_VALUE
from bpo_data.errors import UserError, nearest

if TYPE_CHECKING:
    from bpo_data.llm.limits import Limits


ENGINES = ("local", "processes", "ray")


@dataclass
class Runtime:
    """Never part of an artifact's key, so nothing here may change what is asked for.

    ``device`` and ``threads`` can change the last bits of what a model computes, since sums are
    added in another order; everything else comes out the same.
    """

    folder: str = "runs"
    """Where artifacts are kept; relative to the folder the command is started in."""

    device: str = "auto"
    """``auto`` (a GPU when torch sees one), ``cpu``, ``cuda``, or ``spread``: a policy too large
    for one GPU over all of them, block by block (to sample from and to measure, not to train)."""

    mirror: str = ""
    """A second place of finished artifacts that other machines see too, as an fsspec URL such as
    ``s3://bucket/runs`` (the package of its protocol, here s3fs, is yours to install): what is
    there is fetched in place of being made, and what is made is sent. Workers of ``ray`` on
    machines that do not see ``folder`` read from it."""

    engine: str = "local"
    """Where the parts of a stage are made: ``local`` (in this process, one after the other),
    ``processes`` (several on this machine) or ``ray`` (a Ray cluster whose machines all see
    ``runtime.folder`` or reach ``runtime.mirror``; needs ``pip install 'bpo-data[ray]'``). The same
    bytes come out. Of 1,000 requests to a server or more, its workers are the ones that send."""

    processes: int = 0
    """Workers of ``processes`` and ``ray``, each with the models loaded once and a GPU of its own
    as far as they go round; 0 means one for each GPU, or without GPUs one for each ``threads``
    cores, of this machine or of the cluster."""

    address: str = ""
    """The Ray cluster that this machine belongs to: ``auto``, or its head's ``host:port``; empty
    starts one on this machine that ends with the run."""

    lease: float = 900.0
    """Seconds that a worker of ``ray`` may take to begin, and for a part, before another is given
    it; when parts were finished, four times the slowest is enough, but never below 30. Each further
    try of a part has twice the time of the one before."""

    threads: int = 1
    """CPU threads of torch and FAISS. On small models more threads are slower, not faster."""

    concurrency: int = 16
    """Requests to a language-model server under way at once, at most: fewer after a refusal (429),
    then more again."""

    requests_per_minute: float = 0.0
    """What a server allows, repeated attempts counted; 0 means no limit."""

    tokens_per_minute: float = 0.0
    """What a server allows, sent and written together; 0 means no limit."""

    servers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Other limits for some servers, by base URL: ``{"https://api.example.com/v1": {concurrency:
    64, requests_per_minute: 500, tokens_per_minute: 200000}}``."""

    store: str = ""
    """The request store, a SQLite file; empty means ``requests.sqlite`` in ``runtime.folder``.
    Several runs may share one, and it can be carried to another machine."""

    budget = Budget()
    """The section ``budget``, which ``Config`` puts here: no setting of ``runtime``."""

    def problems(self) -> Iterator[str]:
        if self.device not in ("auto", "cpu", "cuda", "spread"):
            yield f"runtime.device={self.device}: choose auto, cpu, cuda or spread."
        if self.engine not in ENGINES:
            yield f"runtime.engine={self.engine}: choose {', '.join(ENGINES)}."
        elif self.engine == "ray" and importlib.util.find_spec("ray") is None:
            yield (
                "runtime.engine=ray needs Ray: pip install 'bpo-data[ray]', or use "
                "runtime.engine=processes."
            )
        if SECRET_VALUE.search(self.mirror):
            yield (
                "runtime.mirror has a key in its address, which would be written down: leave it "
                "to the environment, where the protocol's package looks for it."
            )
        if self.processes < 0:
            yield f"runtime.processes={self.processes}: use at least 1, or 0 for one a GPU or core."
        if self.processes > 1 and self.engine == "local":
            yield (
                f"runtime.processes={self.processes} wants runtime.engine=processes or ray; local "
                f"makes everything in one."
            )
        if self.address and self.engine != "ray":
            yield f"runtime.address={self.address} is of a Ray cluster: set runtime.engine=ray."
        if "://" in self.address:
            yield (
                f"runtime.address={self.address}: start the command on a machine of the cluster "
                f"and use auto, or its head's host:port."
            )
        if self.lease <= 0:
            yield f"runtime.lease={self.lease:g}: use seconds above 0."
        if self.device == "spread" and self.engine != "local":
            yield "runtime.device=spread has one model on all GPUs: use runtime.engine=local."
        if self.threads < 1:
            yield f"runtime.threads={self.threads}: use at least 1."
        if self.concurrency < 1:
            yield f"runtime.concurrency={self.concurrency}: use at least 1."
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) < 0:
                yield f"runtime.{name}={getattr(self, name):g}: use 0 (no limit) or more."
        for server, limits in self.servers.items():
            yield from server_problems(server, limits)

    def limits(self, base_url: str) -> Limits:
        """What the server at this address may be asked."""
        from bpo_data.llm.limits import Limits

        own = {url.rstrip("/"): limits for url, limits in self.servers.items()}
        limits = {name: getattr(self, name) for name in LIMITS} | own.get(base_url.rstrip("/"), {})
        return Limits(
            int(limits["concurrency"]), limits["requests_per_minute"], limits["tokens_per_minute"]
        )

    def store_file(self) -> Path:
        """Where the request store of this run is, or will be."""
        return Path(self.store or Path(self.folder) / "requests.sqlite")

    def store_path(self) -> Path:
        """The request store of this run; its folder is made."""
        path = self.store_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def torch_device(self, *, spread: bool = False, process: int | None = None) -> str:
        """Where a model goes, with torch's threads set: ``cpu``, ``cuda`` or the GPU of a process;
        ``spread`` where that is asked for and the caller can. Raises UserError when a GPU is asked
        for and there is none."""
        import torch

        torch.set_num_threads(self.threads)
        present = torch.cuda.is_available()
        if self.device in ("cuda", "spread") and not present:
            raise UserError(
                f"runtime.device={self.device} but torch sees no GPU. Use runtime.device=cpu."
            )
        if not present or self.device == "cpu":
            return "cpu"
        if self.device == "spread" and spread:
            return "spread"
        return "cuda" if process is None else f"cuda:{process % torch.cuda.device_count()}"

    def process_count(self) -> int:
        """Processes to use on this machine: as many as asked for, or one for each GPU, or for each
        ``threads`` cores."""
        import torch

        if self.processes:
            return self.processes
        found = torch.cuda.device_count() if self.device != "cpu" else 0
        return found or max(1, cores() // self.threads)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


LIMITS = ("concurrency", "requests_per_minute", "tokens_per_minute")


def server_problems(server: str, limits: object) -> Iterator[str]:
    """What is wrong with one entry of ``runtime.servers``."""
    setting = f"runtime.servers[{server}]"
    if not isinstance(limits, dict) or not limits:
        yield f"{setting} must hold limits: {', '.join(LIMITS)}."
        return
    for name, value in limits.items():
        least = 1 if name == "concurrency" else 0
        if name not in LIMITS:
            close = nearest(str(name), LIMITS)
            yield f"{setting} has {name}.{close} It may hold {', '.join(LIMITS)}."
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            yield f"{setting}.{name}={value}: give a number, at least {least}."


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next tensor in place of handing it back.

    A model on the CPU frees and asks for the same megabytes in every layer, and the operating
    system clears them each time: 23 % of the processor time of measuring gradients (BENCHMARKS.md).
    Elsewhere than with glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * 2**20)


def quiet_libraries() -> None:
    """No pings, no trackers, no kernels of the hub, which are code, no forks of tokenizers'
    threads; whatever the user set stays."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_DISABLED": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "USE_HUB_KERNELS": "NO",
    }.items():
        os.environ.setdefault(name, value)


def prepare(runtime: Runtime) -> None:
    """Thread counts for libraries not loaded yet, no pings from any of them, memory kept."""
    quiet_libraries()
    keep_freed_memory()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(runtime.threads)
