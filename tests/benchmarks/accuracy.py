"""What the projection of pair gradients loses, measured against exact ones.

The policy, its responses and its pairs are those of the quickstart's generated world, the policy
made a little larger; everything is brought up to date by the project's own pipeline. Exact pair
gradients are those of the DPO loss by autograd: full weights of all linear layers but the output
head, kept in float32. From the repository root:

    python -m tests.benchmarks.accuracy --json accuracy.json

Table 1 varies how many numbers a gradient is squeezed to, table 2 which layers are measured.
A figure is the mean over projection seeds, with their standard deviation after the ±:

  Spearman, Pearson   of the cosines of all two different pairs, projected against exact
  in prompt           Spearman of those cosines alone whose two pairs belong to one prompt
  error               root mean squared error of all cosines
  ARI                 adjusted Rand index of k-means clusters, projected against exact
  kept                share of pairs in common that ``allocate.kind=center`` keeps at half of them

ARI and kept are given twice: k-means from the same start (seed) on both sides, and from different
starts. The row ``exact`` compares exact gradients with themselves, so that its figures at
different starts are what k-means alone lets through: the most that ``other`` can be asked for.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS = ("sft.scratch.layers=4", "sft.scratch.width=128", "sft.scratch.hidden=384")
"""The quickstart's policy has 2 blocks, so that its last block would be its last half."""
DIMS = (256, 512, 1024, 2048, 4096, 8192)
RANKS = (16, 32, 64)
LAYERS_RANK, LAYERS_DIM = 32, 1024
"""Rank and dim of table 2: the defaults of the gradients stage."""
STARTS = 5
"""k-means seeds; figures are means over them."""
PLAIN = 10**9
"""No gradient is as wide, so the two-sided projection is left without a sketch."""
BETA = 0.1
"""Of the DPO loss; at its reference it scales a pair's gradient and does not turn it."""
BATCH_TOKENS = 8192
MEASURES = (
    "spearman",
    "pearson",
    "in_prompt",
    "error",
    "ari_same",
    "ari_other",
    "kept_same",
    "kept_other",
)
HEADINGS = (
    "Spearman",
    "Pearson",
    "in prompt",
    "error",
    "ARI same",
    "ARI other",
    "kept same",
    "kept other",
)
Tokens = list[Sequence[int]]


@dataclass(frozen=True)
class World:
    """A policy with the responses and the n pairs to measure."""

    model: PreTrainedModel
    prompts: Tokens
    """The prompt of each response."""
    responses: Tokens
    chosen: np.ndarray
    """(n,) number of the chosen response of each pair."""
    rejected: np.ndarray
    """(n,) number of the rejected one."""
    pair_id: list[str]
    prompt_id: list[str]


@dataclass(frozen=True)
class Groups:
    """What clustering and allocation make of n unit gradients, for one k-means start."""

    cluster: np.ndarray
    """(n,) int32"""
    kept: frozenset[int]
    """Half the pairs: those that ``center`` keeps."""


@dataclass(frozen=True)
class Picture:
    """Everything that is compared of one table of gradients."""

    cosines: np.ndarray
    """(n (n - 1) / 2,) of every two different pairs."""
    in_prompt: np.ndarray
    """Those of two pairs of the same prompt."""
    groups: list[Groups]
    """One for each k-means start."""


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        world = made_world(options)
        grams = exact_grams(world)
        exact = pictured(rows_of(np.sum(list(grams.values()), axis=0)), world)
        result: dict[str, Any] = {"options": vars(options), "about": about(world, grams, exact)}
        print("\n".join(f"{name}: {value}" for name, value in result["about"].items()), flush=True)
        result["dim"] = dim_table(world, exact, options.seeds)
        show_dims(result["dim"])
        result["exponents"] = exponents(result["dim"]["rows"])
        show_exponents(result["exponents"])
        result["layers"] = layer_table(world, exact, grams, options)
        show_layers(result["layers"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")
    return 0


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accuracy",
        description=(__doc__ or "").partition("\n\n")[0],
    )
    parser.add_argument("--pairs", type=int, default=512, help="at most; prompts are kept whole")
    parser.add_argument("--seeds", type=int, default=3, help="projection seeds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="of timing, every choice in each")
    parser.add_argument("--json", default="", metavar="PATH", help="write all figures there")
    parser.add_argument(
        "--folder",
        default=str(Path(tempfile.gettempdir()) / "bpo_data_accuracy"),
        help="runtime.folder: where the policy is kept for the next time (%(default)s)",
    )
    parser.add_argument(
        "--settings",
        nargs="*",
        default=list(SETTINGS),
        metavar="SECTION.KEY=VALUE",
        help="differences from the quickstart (%(default)s)",
    )
    return parser.parse_args(arguments)


def made_world(options: argparse.Namespace) -> World:
    """The policy, and all pairs of prompts drawn by lot, at most ``options.pairs`` of them."""
    from bpo_data.pipelines import config, run
    from bpo_data.policy import encode, load_policy, policy_location
    from bpo_data.tables import lookup

    places = (f"runtime.folder={options.folder}", f"runtime.threads={options.threads}")
    asked = config.read(["stage=pair", "recipe=quickstart", *places, *options.settings])
    run.prepare(asked.config.runtime)
    pipeline = run.Run(asked)
    with redirect_stdout(sys.stderr):
        pipeline.go()
    policy = load_policy(*policy_location(pipeline.made["policy"].folder), "cpu", "float32")
    pairs = drawn(pipeline.made["pairs"].table().to_pylist(), options.pairs)
    sides = [(pair["chosen_id"], pair["rejected_id"]) for pair in pairs]
    names = sorted({name for both in sides for name in both})
    rows = lookup(pipeline.made["responses"].table(), "response_id", names)
    asked_for = lookup(pipeline.made["prompts"].table(), "prompt_id", rows["prompt_id"])
    tokens = [
        encode(policy.tokenizer, prompt, text)
        for prompt, text in zip(
            asked_for["prompt"].to_pylist(), rows["text"].to_pylist(), strict=True
        )
    ]
    number = {name: place for place, name in enumerate(names)}
    return World(
        model=policy.model,
        prompts=[prompt for prompt, _ in tokens],
        responses=[response for _, response in tokens],
        chosen=np.array([number[chosen] for chosen, _ in sides]),
        rejected=np.array([number[rejected] for _, rejected in sides]),
        pair_id=[pair["pair_id"] for pair in pairs],
        prompt_id=[pair["prompt_id"] for pair in pairs],
    )


def drawn(pairs: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """All pairs of as many prompts as fit, since depth is about the pairs of one prompt."""
    from bpo_data.tables import lot

    order = sorted(pairs, key=lambda pair: (lot(0, "accuracy", pair["prompt_id"]), pair["pair_id"]))
    if len(order) > most:
        last = order[most]["prompt_id"]
        order = [pair for pair in order[:most] if pair["prompt_id"] != last]
    return sorted(order, key=lambda pair: pair["pair_id"])


def about(world: World, grams: dict[str, np.ndarray], exact: Picture) -> dict[str, str]:
    """The size of what is measured, and what an error of a cosine is to be compared with."""
    from bpo_data.stages.select import default_k

    sizes = [weight.numel() for weight in layer_weights(world.model).values()]
    prompts = len(set(world.prompt_id))
    return {
        "policy": f"{world.model.num_parameters():,} parameters, {sum(sizes):,} of them measured"
        f" in {len(grams)} linear layers of {world.model.config.num_hidden_layers} blocks",
        "pairs": f"{len(world.pair_id)} of {prompts} prompts, {len(world.responses)} responses",
        "clusters": f"{default_k(len(world.pair_id))}, k-means from {STARTS} starts",
        "exact cosines": f"mean {exact.cosines.mean():.3f}, standard deviation"
        f" {exact.cosines.std():.3f}; in a prompt mean {exact.in_prompt.mean():.3f}, standard"
        f" deviation {exact.in_prompt.std():.3f}",
    }


# Exact gradients -----------------------------------------------------------------------------


def layer_weights(model: PreTrainedModel) -> dict[str, Any]:
    """The weights of all linear layers but the output head, by the layer's name."""
    from torch import nn

    head = model.get_output_embeddings()
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def exact_grams(world: World) -> dict[str, np.ndarray]:
    """Inner products of the exact pair gradients, (n, n) float64 for each layer.

    Inner products add up over layers, so these tell all about any choice of layers; the gradients
    themselves (n x the layer's weights, float32) are forgotten once they are multiplied.
    """
    import torch

    weights = layer_weights(world.model)
    count = len(world.pair_id)
    rows = {name: np.empty((count, weight.numel()), np.float32) for name, weight in weights.items()}
    for pair in range(count):
        found = torch.autograd.grad(pair_loss(world, pair), list(weights.values()))
        for name, gradient in zip(weights, found, strict=True):
            rows[name][pair] = gradient.flatten().numpy()
    grams = {}
    for name in weights:
        wide = rows.pop(name).astype(np.float64)
        grams[name] = wide @ wide.T
    return grams


def pair_loss(world: World, pair: int) -> Any:
    """The DPO loss of one pair at its own reference, with its graph: written out, no padding."""
    from bpo_data.losses import LOSSES

    sides = [log_prob(world, int(rows[pair])) for rows in (world.chosen, world.rejected)]
    chosen, rejected = (side - side.detach() for side in sides)
    return LOSSES["sigmoid"](chosen, rejected, BETA)


def log_prob(world: World, response: int) -> Any:
    """Summed log-probability of a response's tokens after its prompt, with its graph."""
    import torch

    prompt, answer = world.prompts[response], world.responses[response]
    logits = world.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, torch.tensor(answer)[:, None]).sum()


def rows_of(gram: np.ndarray) -> np.ndarray:
    """(n, n) inner products -> (n, n) float32 unit rows that have their cosines.

    The exact gradients turned so that n numbers are enough: k-means sees the same distances.
    """
    length = np.sqrt(np.diag(gram))
    values, vectors = np.linalg.eigh(gram / np.outer(length, length))
    rows: np.ndarray = vectors * np.sqrt(np.maximum(values, 0))
    return rows.astype(np.float32)


# Projected gradients and the comparison ------------------------------------------------------


def projected(
    world: World, rank: int, dim: int, seed: int, layers: str
) -> tuple[np.ndarray, int, int]:
    """Unit pair gradients by the engine, (n, d) float32, with their width and number of layers."""
    from bpo_data.components.embedders import unit
    from bpo_data.gradients.engine import ResponseGradients
    from bpo_data.gradients.pairs import pair_gradients
    from bpo_data.losses import coefficients

    engine = ResponseGradients(
        world.model, rank=rank, dim=dim, seed=seed, layers=layers, batch_tokens=BATCH_TOKENS
    )
    measured = engine.of(world.prompts, world.responses).gradient
    at_reference = np.zeros(len(world.pair_id))
    rows = pair_gradients(
        measured[world.chosen],
        measured[world.rejected],
        *coefficients("sigmoid", at_reference, at_reference, BETA),
    )
    return unit(rows), engine.dim, len(engine.layers)


def pictured(rows: np.ndarray, world: World) -> Picture:
    """Cosines, clusters and kept pairs of (n, d) unit gradients."""
    wide = rows.astype(np.float64)
    cosines = (wide @ wide.T)[np.triu_indices(len(rows), 1)]
    owner = np.unique(world.prompt_id, return_inverse=True)[1]
    alike = (owner[:, None] == owner)[np.triu_indices(len(rows), 1)]
    groups = [grouped(rows, world, start) for start in range(STARTS)]
    return Picture(cosines, cosines[alike], groups)


def grouped(rows: np.ndarray, world: World, start: int) -> Groups:
    """The project's own k-means and ``center`` at half the pairs, with their defaults."""
    from bpo_data.components import allocators, clusterers
    from bpo_data.stages.select import default_k

    k = default_k(len(rows))
    cluster, distance, _ = clusterers.grouped(clusterers.FaissKMeans(), rows, k, start, threads=1)
    pool = allocators.Pool(world.pair_id, world.prompt_id, cluster, distance)
    choice = allocators.Center()(pool, len(rows) // 2, True, len(rows), 0)
    return Groups(cluster, frozenset(choice.kept))


def compared(picture: Picture, exact: Picture) -> dict[str, float]:
    """The figures of ``MEASURES``, means over the k-means starts."""
    from scipy.stats import pearsonr, spearmanr

    figures = {
        "spearman": spearmanr(picture.cosines, exact.cosines).statistic,
        "pearson": pearsonr(picture.cosines, exact.cosines).statistic,
        "in_prompt": spearmanr(picture.in_prompt, exact.in_prompt).statistic,
        "error": np.sqrt(np.mean((picture.cosines - exact.cosines) ** 2)),
    }
    for name, measure in (("ari", rand_index), ("kept", in_common)):
        table = np.array(
            [[measure(one, other) for other in exact.groups] for one in picture.groups]
        )
        same = np.eye(STARTS, dtype=bool)
        figures |= {f"{name}_same": table[same].mean(), f"{name}_other": table[~same].mean()}
    return {name: float(figures[name]) for name in MEASURES}


def rand_index(one: Groups, other: Groups) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one.cluster, other.cluster))


def in_common(one: Groups, other: Groups) -> float:
    return len(one.kept & other.kept) / len(one.kept)


def by_lot(world: World, exact: Picture) -> float:
    """The share of kept pairs in common with ``center`` when pairs are drawn: kept by chance."""
    from bpo_data.components.allocators import Pool, Random

    nothing = np.zeros(len(world.pair_id), np.int32)
    pool = Pool(world.pair_id, world.prompt_id, nothing, nothing.astype(np.float32))
    draws = [Random()(pool, len(nothing) // 2, True, len(nothing), seed) for seed in range(20)]
    lots = [Groups(nothing, frozenset(draw.kept)) for draw in draws]
    return statistics.mean(in_common(one, other) for one, other in product(lots, exact.groups))


# Tables --------------------------------------------------------------------------------------


def over_seeds(
    world: World, exact: Picture, seeds: int, rank: int, dim: int, layers: str
) -> dict[str, Any]:
    """One row of a table: the figures of each projection seed, and the width before a sketch."""
    figures: dict[str, list[float]] = {name: [] for name in MEASURES}
    for seed in range(seeds):
        rows, found, count = projected(world, rank, dim, seed, layers)
        for name, figure in compared(pictured(rows, world), exact).items():
            figures[name].append(figure)
    return {"rank": rank, "dim": found, "width": count * rank**2, "figures": figures}


def dim_table(world: World, exact: Picture, seeds: int) -> dict[str, Any]:
    """Table 1: every dim that is narrower than a rank's projection, and that projection itself."""
    rows = []
    for rank in RANKS:
        width = len(layer_weights(world.model)) * rank**2
        for dim in (*(dim for dim in DIMS if dim < width), PLAIN):
            rows.append(over_seeds(world, exact, seeds, rank, dim, "blocks"))
    return {"rows": rows, "exact": compared(exact, exact), "by_lot": by_lot(world, exact)}


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """a of error ~ dim^-a at each rank: of the whole error, and of what the sketch adds to it.

    The two sides' part is that of the projection without sketch, and independent errors add up in
    squares.
    """
    found = {}
    for rank in RANKS:
        of_rank = [row for row in rows if row["rank"] == rank]
        squares = {row["dim"]: np.mean(np.square(row["figures"]["error"])) for row in of_rank}
        plain = squares.pop(of_rank[0]["width"])
        dims, whole = np.log(list(squares)), np.array(list(squares.values()))
        added = np.maximum(whole - plain, 1e-12)
        found[str(rank)] = {
            "whole": -float(np.polyfit(dims, np.log(whole) / 2, 1)[0]),
            "sketch": -float(np.polyfit(dims, np.log(added) / 2, 1)[0]),
        }
    return found


def choices(model: PreTrainedModel) -> dict[str, str]:
    """The layers of table 2, as ``ResponseGradients`` takes them."""
    count = model.config.num_hidden_layers

    def blocks(first: int, end: int) -> str:
        return rf"layers\.({'|'.join(map(str, range(first, end)))})\."

    return {
        "blocks": "blocks",
        "last half": blocks(count - count // 2, count),
        "last block": blocks(count - 1, count),
        "first block": blocks(0, 1),
        "self_attn": r"\.self_attn\.",
        "mlp": r"\.mlp\.",
    }


def layer_table(
    world: World, exact: Picture, grams: dict[str, np.ndarray], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Table 2: each choice against exact gradients of all blocks, projected and exact itself."""
    rows = []
    for name, layers in choices(world.model).items():
        row = over_seeds(world, exact, options.seeds, LAYERS_RANK, LAYERS_DIM, layers)
        picked = [
            gram for key, gram in grams.items() if layers == "blocks" or re.search(layers, key)
        ]
        own = compared(pictured(rows_of(np.sum(picked, axis=0)), world), exact)
        share = float(sum(map(np.trace, picked)) / sum(map(np.trace, grams.values())))
        rows.append({"layers": name, "pattern": layers, **row, "share": share, "unprojected": own})
    spent = {
        "cost_policy": ratios(world.model, world.prompts, world.responses, options.rounds),
        "cost_large": ratios(*large(), options.rounds),
    }
    return [{**row, **{key: cost[row["layers"]] for key, cost in spent.items()}} for row in rows]


def large() -> tuple[PreTrainedModel, Tokens, Tokens]:
    """A Llama of 6.3 million random weights, and 48 sequences of some 200 tokens, for cost only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(200) - 0.18, 0.6, 48), 16, 512).astype(int)
    ids = [random.integers(3, 4096, length).tolist() for length in lengths]
    prompts: Tokens = [row[: 2 * len(row) // 5] for row in ids]
    responses: Tokens = [row[2 * len(row) // 5 :] for row in ids]
    return LlamaForCausalLM(config).eval(), prompts, responses


def ratios(
    model: PreTrainedModel, prompts: Tokens, responses: Tokens, rounds: int
) -> dict[str, dict[str, float]]:
    """CPU time of ``of`` for each choice of layers, as a ratio to ``blocks`` in the same round.

    Rounds begin at different choices, since what ran before leaves caches warm or cold.
    """
    from bpo_data.gradients.engine import ResponseGradients

    def measure(layers: str) -> Callable[[], Any]:
        engine = ResponseGradients(
            model,
            rank=LAYERS_RANK,
            dim=LAYERS_DIM,
            seed=0,
            layers=layers,
            batch_tokens=BATCH_TOKENS,
        )
        return lambda: engine.of(prompts, responses)

    work = {name: measure(layers) for name, layers in choices(model).items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for one in work.values():
        one()
    for turn in range(rounds):
        for name in rotated(list(work), turn):
            began = time.process_time()
            work[name]()
            seconds[name].append(time.process_time() - began)
    found = {}
    for name, spent in seconds.items():
        ratio = [one / whole for one, whole in zip(spent, seconds["blocks"], strict=True)]
        found[name] = {
            "seconds": statistics.median(spent),
            "ratio": statistics.median(ratio),
            "lowest": min(ratio),
            "highest": max(ratio),
        }
    return found


def rotated(names: list[str], turn: int) -> list[str]:
    turn %= len(names)
    return names[turn:] + names[:turn]


# Printing ------------------------------------------------------------------------------------


def show_dims(table: dict[str, Any]) -> None:
    rows = [["exact", "", "", *(f"{table['exact'][name]:.3f}" for name in MEASURES)]]
    for row in table["rows"]:
        kind = "sketch" if row["dim"] < row["width"] else "two-sided"
        rows.append([kind, str(row["rank"]), f"{row['dim']:,}", *spread(row["figures"])])
    rows.append(["by lot", "", "", *[""] * (len(MEASURES) - 1), f"{table['by_lot']:.3f}"])
    show("Table 1: numbers a gradient", ("", "rank", "dim", *HEADINGS), rows)


def show_exponents(found: dict[str, dict[str, float]]) -> None:
    for rank, of_rank in found.items():
        print(
            f"rank {rank}: error ~ dim^-{of_rank['whole']:.2f}, what the sketch adds to the"
            f" two-sided projection ~ dim^-{of_rank['sketch']:.2f}",
            flush=True,
        )


def show_layers(table: list[dict[str, Any]]) -> None:
    rows, more = [], []
    for row in table:
        sizes = f"{row['width']:,}", f"{row['dim']:,}"
        rows.append([row["layers"], *sizes, *spread(row["figures"])])
        own = (f"{row['unprojected'][name]:.3f}" for name in MEASURES)
        more.append([row["layers"], f"{100 * row['share']:.1f} %", *own, *costs(row)])
    show(
        f"Table 2: layers, projected with rank {LAYERS_RANK} and dim {LAYERS_DIM:,}",
        ("layers", "width", "dim", *HEADINGS),
        rows,
    )
    show(
        "Table 2, continued: the same layers' exact gradients, their share of the squared length of"
        " all,\nand CPU time of `of` as a ratio to blocks, median [lowest, highest] of the rounds",
        ("layers", "share", *HEADINGS, "cost, policy", "cost, large"),
        more,
    )
    seconds = (f"{table[0][key]['seconds']:.2f} s" for key in ("cost_policy", "cost_large"))
    print(f"CPU time of blocks: {', '.join(seconds)}")


def costs(row: dict[str, Any]) -> Iterator[str]:
    for key in ("cost_policy", "cost_large"):
        cost = row[key]
        yield f"{cost['ratio']:.2f} [{cost['lowest']:.2f}, {cost['highest']:.2f}]"


def spread(figures: dict[str, list[float]]) -> Iterator[str]:
    """Mean and standard deviation over projection seeds, for each measure."""
    for name in MEASURES:
        values = figures[name]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        yield f"{statistics.mean(values):.3f} ±{deviation:.3f}"


def show(title: str, headings: Sequence[str], rows: list[list[str]]) -> None:
    """Print a table with aligned columns."""
    table = [list(headings), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    print(f"\n{title}\n")
    for first, *rest in table:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)).rstrip(), flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
