"""Before any test: one thread, no network, no pings."""

from __future__ import annotations

import gc
import os
import sys

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from bpo_data.runtime import quiet_libraries  # noqa: E402  (libraries read these when imported)

quiet_libraries()

pytest_plugins = ["asking", "exporting"]  # for its fixtures

SOME = 100
"""Modules imported since, from which freezing again is worth a collection."""

frozen = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=25, help="of each engine in test_spread_kills.py")


def pytest_runtest_setup() -> None:
    """Keep what is imported from the garbage collector, which every training calls."""
    global frozen
    if len(sys.modules) > frozen + SOME:
        gc.collect()
        gc.freeze()
        frozen = len(sys.modules)
