"""The quickstart's world with a larger policy, and exact gradients of its pairs' DPO loss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = list[Sequence[int]]
SETTINGS = ("sft.scratch.layers=4", "sft.scratch.width=128", "sft.scratch.hidden=384")
"""The quickstart's policy has 2 blocks, so that its last block would be its last half."""
BETA = 0.1
"""Of the DPO loss; at its reference it scales a pair's gradient and does not turn it."""


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


def made_world(options: argparse.Namespace) -> World:
    """The policy, and all pairs of prompts drawn by lot, at most ``options.pairs`` of them."""
    from bpo_data.pipelines import config, run
    from bpo_data.policy import encode, load_policy, policy_location
    from bpo_data.runtime import prepare
    from bpo_data.tables import lookup

    places = (f"runtime.folder={options.folder}", f"runtime.threads={options.threads}")
    asked = config.read(["stage=pair", "recipe=quickstart", *places, *options.settings])
    prepare(asked.config.runtime)
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
