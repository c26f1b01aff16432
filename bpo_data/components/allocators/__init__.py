"""Which pairs to keep, at an exact budget: the depth each prompt gets.

The paper (arXiv 2411.10914) clusters the gradients of all pairs and keeps pairs near the centres,
so that depth is an outcome. Quotas, floors, caps and tie rules are our choice, and the same for
every kind: each prompt's floor comes first, then the kind's own rule, and what caps leave open
goes to the pairs that remain, in the kind's order. Ties go to the lower pair id.
"""

from __future__ import annotations

from collections.abc import Callable

from bpo_data.components.allocators.clusters import (
    Center,
    Clusters,
    Embedding,
    Far,
    Informative,
    Sample,
)
from bpo_data.components.allocators.confirmed import Confirmed
from bpo_data.components.allocators.cover import DOptimal, KCenter
from bpo_data.components.allocators.facility import FacilityLocation
from bpo_data.components.allocators.lots import Breadth, Random, Uniform
from bpo_data.components.allocators.picking import Picker, largest_remainder
from bpo_data.components.allocators.pool import Allocator, Choice, Pool, limits
from bpo_data.components.allocators.prompts import Marginal, PerPrompt
from bpo_data.components.allocators.pursuit import MatchingPursuit
from bpo_data.components.allocators.ranked import Ifd, Margin, Norm, Perplexity, Target

__all__ = ["KINDS", "Allocator", "Choice", "Picker", "Pool", "largest_remainder", "limits"]

KINDS: dict[str, Callable[..., Allocator]] = {
    "confirmed": Confirmed,
    "center": Center,
    "sample": Sample,
    "per_prompt": PerPrompt,
    "informative": Informative,
    "far": Far,
    "clusters": Clusters,
    "marginal": Marginal,
    "uniform": Uniform,
    "random": Random,
    "breadth": Breadth,
    "margin": Margin,
    "norm": Norm,
    "perplexity": Perplexity,
    "ifd": Ifd,
    "target": Target,
    "embedding": Embedding,
    "d_optimal": DOptimal,
    "k_center": KCenter,
    "facility_location": FacilityLocation,
    "matching_pursuit": MatchingPursuit,
}
