"""The clock, and what a reader must know of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any


def clock(device: str) -> float:
    """Seconds: processor time on a CPU, which other work does not change, else wall time."""
    if not device.startswith("cuda"):
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: str) -> dict[str, Any]:
    """The processor or GPU, how busy it is, and the versions measured."""
    import torch

    facts: dict[str, Any] = {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    for package in ("torch", "transformers", "bergson", "traker", "dattri"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def processor_name() -> str:
    """The processor's name where Linux tells it, with its family: names alone can say nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in pairs}
    family = f"family {named.get('cpu family')}, model {named.get('model')}"
    return f"{named.get('model name', platform.processor())} ({family})"
