"""How fast the gradients of pairs are measured: our engine beside its peers, in one run.

  python -m tests.benchmarks.gradients                               # model M, bfloat16, pairs
  python -m tests.benchmarks.gradients --workload eight --only ours,bergson
  python -m tests.benchmarks.gradients --size S --memory             # is the peak flat?
  python -m tests.benchmarks.gradients --check                       # are the numbers right?

Every contender gets the same random model and the same token ids, and makes a projected gradient
for every pair. The floor (ratio 1) is one training step over the pairs: forward and backward of two
whole sequences a pair, with all logits and all weight gradients, in padded batches of like length.
All of them run once to warm up, then take turns; a ratio is a contender's time over the floor's in
the same round, shown as median, least and largest over the rounds. Time is processor time on a CPU,
so that other work on the machine does not decide, and wall time on CUDA.

Peers are no dependencies. Install them in an environment of their own, beside our requirements and
torch of the same version: pip install torch==... bergson traker dattri. What is missing is skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.machine import clock, machine
from tests.benchmarks.workloads import (
    SIZES,
    WORKLOADS,
    Measuring,
    Tokens,
    padding_share,
    pair_batches,
    pair_losses,
    tokens_of,
)

LARGEST_ERROR = 1e-3
PACKAGES = {"trak": "traker"}
"""What to install where the module has another name."""


class Contender(Protocol):
    note: str
    """How it went about it, for the table."""

    def run(self) -> float:
        """Do the whole task once. Returns seconds to add for what was scaled up instead of run."""


class Floor:
    """A training step over all pairs, without the optimizer."""

    note = "forward and backward, all weight gradients"

    def __init__(self, data: Tokens, how: Measuring) -> None:
        self.data, self.model = data, how.model()
        self.batches = pair_batches(data, how.batch_tokens)

    def run(self) -> float:
        for pairs in self.batches:
            pair_losses(self.model, self.data, pairs).sum().backward()
            self.model.zero_grad(set_to_none=True)
        return 0.0


def contenders() -> dict[str, Callable[[Tokens, Measuring], Contender]]:
    """By name, in the order they are shown; the floor comes first."""
    from tests.benchmarks import dense_peers, peers
    from tests.benchmarks.ours import Ours, OursCompiled

    return {
        "floor": Floor,
        "ours": Ours,
        "ours_compiled": OursCompiled,
        "bergson": peers.Bergson,
        "bergson_responses": peers.BergsonResponses,
        "dattri": peers.Dattri,
        "less": dense_peers.Less,
        "trak": dense_peers.Trak,
    }


def set_up(names: list[str], data: Tokens, how: Measuring) -> dict[str, Contender]:
    """The contenders that are installed, each run once; a line for each that is not."""
    known, ready = contenders(), {}
    for name in names:
        try:
            contender = known[name](data, how)
        except ModuleNotFoundError as error:
            missing = PACKAGES.get(error.name or "", error.name)
            print(f"{name}: skipped; it needs {missing}: pip install {missing}", flush=True)
            continue
        taken = seconds(contender, how.device)
        print(f"{name}: warm-up {taken:.1f} s", file=sys.stderr, flush=True)
        ready[name] = contender
    return ready


def seconds(contender: Contender, device: str) -> float:
    """Time of one run, with what was scaled up added."""
    gc.collect()
    start = clock(device)
    added = contender.run()
    return clock(device) - start + added


def take_turns(ready: dict[str, Contender], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every contender in every round."""
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, contender in ready.items():
            taken[name].append(seconds(contender, device))
    return taken


def summary(taken: dict[str, list[float]], prompts: int) -> dict[str, dict[str, float]]:
    """Per contender: median, least and largest ratio to the floor, median seconds, prompts/s."""
    result = {}
    for name, times in taken.items():
        ratios = [own / floor for own, floor in zip(times, taken["floor"], strict=True)]
        result[name] = {
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "largest": max(ratios),
            "seconds": statistics.median(times),
            "prompts_per_second": prompts / statistics.median(times),
        }
    return result


def print_table(result: dict[str, dict[str, float]], ready: dict[str, Contender]) -> None:
    print(
        f"{'contender':18}{'ratio':>9}{'[least, largest]':>20}{'seconds':>10}{'prompts/s':>11}  how"
    )
    for name, row in result.items():
        span = f"[{row['least']:.3f}, {row['largest']:.3f}]"
        speed = f"{row['seconds']:10.4g}{row['prompts_per_second']:11.4g}"
        print(f"{name:18}{row['ratio']:9.3f}{span:>20}{speed}  {ready[name].note}")


def parse() -> argparse.Namespace:
    headline, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gradients",
        description=headline,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, usual = parser.add_argument, Measuring("M")
    add("--workload", choices=WORKLOADS, default="pairs")
    add("--size", choices=SIZES, help="model; default: the workload's")
    add("--dtype", choices=("float32", "bfloat16"), help="default: the model's")
    add("--device", default=usual.device)
    add("--prompts", type=int, help="default: the workload's")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1, help="1 makes processor time comparable")
    add("--seed", type=int, default=0, help="of token ids and lengths")
    add("--rank", type=int, default=usual.rank, help="numbers a layer: its square")
    add("--dim", type=int, default=usual.dim, help="numbers a row of ours, LESS and TRAK")
    add("--batch-tokens", type=int, default=usual.batch_tokens, help="padding counted")
    add("--pairs-run", type=int, default=usual.pairs_run, help="by LESS and TRAK, then scaled")
    add("--only", help="names separated by commas; the floor always runs")
    add("--json", type=Path, metavar="PATH", help="append the result as one line")
    add("--memory", action="store_true", help="our engine's peak at n and 8 n prompts instead")
    add("--memory-child", action="store_true", help=argparse.SUPPRESS)
    add("--check", action="store_true", help="against autograd instead; status 1 when wrong")
    return parser.parse_args()


def measuring(options: argparse.Namespace) -> Measuring:
    size = options.size or WORKLOADS[options.workload].size
    return Measuring(
        size=size,
        dtype=options.dtype or SIZES[size].dtype,
        device=options.device,
        rank=options.rank,
        dim=options.dim,
        batch_tokens=options.batch_tokens,
        pairs_run=options.pairs_run,
    )


def compare(options: argparse.Namespace, how: Measuring, prompts: int) -> dict[str, Any]:
    """Time the contenders on one workload and print their table."""
    from tests.benchmarks import ours

    names = options.only.split(",") if options.only else list(contenders())
    if unknown := set(names) - set(contenders()):
        raise SystemExit(f"--only: no contender {unknown.pop()}; there are {list(contenders())}")
    data = tokens_of(options.workload, prompts, options.seed, SIZES[how.size].vocabulary)
    print(
        f"{options.workload}: {prompts} prompts, {len(data.responses)} responses, "
        f"{len(data.pairs)} pairs, {data.pair_tokens(data.pairs):,} tokens in pairs and "
        f"{padding_share(data, how.batch_tokens):.0%} of the floor's batches padding; model "
        f"{how.size} {how.dtype} on {how.device}, {options.threads} thread(s), "
        f"{options.rounds} rounds",
        flush=True,
    )
    ready = set_up(["floor", *(name for name in names if name != "floor")], data, how)
    result = summary(take_turns(ready, options.rounds, how.device), prompts)
    print_table(result, ready)
    peak = ours.matmul_peak(how)
    for name in ("ours", "ours_compiled"):
        if name in result:
            rate = ours.operations(data, how) / result[name]["seconds"]
            result[name]["share_of_peak"] = rate / peak
            print(
                f"{name}: {rate:.3g} operations/s in matrix products, {rate / peak:.0%} of the "
                f"{peak:.3g} of one large product"
            )
    notes = {name: contender.note for name, contender in ready.items()}
    return {"contenders": result, "notes": notes}


def main() -> None:
    options = parse()
    # What peers print of their progress would bury the table; tqdm reads this when it is imported.
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    logging.disable(logging.WARNING)
    import torch

    from tests.benchmarks import ours

    torch.set_num_threads(options.threads)
    if options.check:
        error = ours.largest_error()
        print(f"largest relative error against autograd {error:.1e}, allowed {LARGEST_ERROR:.0e}")
        raise SystemExit(error > LARGEST_ERROR)
    how = measuring(options)
    prompts = options.prompts or WORKLOADS[options.workload].prompts
    if options.memory_child:
        print(*ours.peak_of(options.workload, prompts, options.seed, how))
        return
    if options.memory:
        result: dict[str, Any] = {"memory": ours.peaks(sys.argv[1:], prompts)}
    else:
        result = compare(options, how, prompts)
    if options.json:
        asked = {"workload": options.workload, "prompts": prompts, "seed": options.seed}
        line = {**machine(how.device), **asked, **vars(how), "rounds": options.rounds, **result}
        with options.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
