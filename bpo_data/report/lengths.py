"""Whether length tells chosen from rejected in the kept pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bpo_data.report.pair_map import lengths_of
from bpo_data.statistics import share_by_prompt

FAR = 0.7
"""Share of one side beyond which we call length telling; our choice."""


def tells(kept: pa.Table) -> bool:
    """Whether the 95 % interval of the share that have the longer response chosen lies beyond FAR.

    ``kept`` has ``prompt_id``, ``chosen`` and ``rejected``. The share is over prompts, ties half,
    as of ``share_by_prompt``: where all agree, it takes 9 prompts to be sure.
    """
    chosen, rejected = lengths_of(kept).T
    longer = (1 + np.sign(chosen - rejected)) / 2
    share = share_by_prompt(zip(kept["prompt_id"].to_pylist(), longer.tolist(), strict=True))
    return share is not None and (share.low > FAR or share.high < 1 - FAR)
