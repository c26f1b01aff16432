"""Before any test: one thread, no network, no pings."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from bpo_data.runtime import quiet_libraries  # noqa: E402  (libraries read these when imported)

quiet_libraries()
