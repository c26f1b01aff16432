"""A reward model: a transformers sequence classifier with one output, run in process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import checkpoints
from bpo_data.components.judging import Item, Judgement, Offline, Verdict, sole
from bpo_data.engines import Job, Make, Place
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.policy import TemplateRefuses, plain_messages, quiet_progress, written
from bpo_data.runtime import Runtime
from bpo_data.tables import Message, columns

BATCHES = 16
"""Batches in a part."""
POINTS = columns(points=pa.float64())
DTYPES = ("float32", "bfloat16")
SETTING = "score.options.model"
WAY_OUT = (
    "Name a folder with config.json, tokenizer and safetensors weights, or a model of the hub that "
    "this machine reaches."
)

Tokens = tuple[int, ...]


class RewardModel(Offline):
    """A transformers sequence classifier with one output: its logit is the response's points.

    It sees the conversation with the response as its chat template writes them, and nothing is
    cut: what is longer than ``max_length`` tokens, or than the model can hold, has no points.
    """

    judges_new = True

    def __init__(
        self,
        model: str,
        revision: str = "",
        batch: int = 16,
        max_length: int = 2048,
        dtype: str = "float32",
    ) -> None:
        if batch < 1 or max_length < 1:
            raise ValueError("batch and max_length must be at least 1")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype} is not known; choose {' or '.join(DTYPES)}")
        self.name = model
        self.revision = revision
        self.batch = batch
        self.max_length = max_length
        self.dtype = dtype

    def ready(self) -> None:
        """Raise UserError when the model is a folder that is not there, before other stages."""
        looks_like_path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        if looks_like_path and not (Path(self.name) / "config.json").is_file():
            raise UserError(
                f"{SETTING}={self.name} holds no model. Name a folder that save_pretrained wrote, "
                f"or a model of the hub."
            )

    def __call__(self, items: Sequence[Item], known: Sequence[Item], desk: Desk) -> Judgement:
        if not items:
            return Judgement([], [])
        tokenizer, limit = self.reader()
        verdicts: dict[int, Verdict] = {}
        same: dict[Tokens, list[int]] = {}
        for row, item in enumerate(items):
            try:
                tokens = tokens_of(tokenizer, item)
            except TemplateRefuses as error:
                verdicts[row] = Verdict(None, "unreadable", str(error))
                continue
            if len(tokens) > limit:
                reason = f"{len(tokens):,} tokens are more than {limit:,}"
                verdicts[row] = Verdict(None, "too_long", reason)
            else:
                same.setdefault(tokens, []).append(row)
        desk.done(len(verdicts))
        # What reads the same is computed once: in another batch its last bits would differ.
        order = sorted(same, key=lambda tokens: (-len(tokens), tokens))
        rows = pa.table({"tokens": pa.array(order, pa.list_(pa.int32()))})
        part_rows = self.batch * BATCHES  # no batch straddles a part
        job = Job("points", rows, Rating(self, desk.runtime), POINTS, part_rows)
        rated = desk.spread(job, desk.done)
        for tokens, points in zip(order, rated["points"].to_pylist(), strict=True):
            verdicts |= dict.fromkeys(same[tokens], verdict_of(points))
        desk.done(sum(map(len, same.values())) - len(order))
        return sole(self.name, [verdicts[row] for row in range(len(items))])

    def reader(self) -> tuple[Any, int]:
        """(tokenizer, the tokens that a conversation may have). Raises UserError."""
        from transformers import AutoConfig, AutoTokenizer

        options = checkpoints.options(self.name, self.revision)
        with checkpoints.loading(self.name, SETTING, WAY_OUT):
            tokenizer = AutoTokenizer.from_pretrained(self.name, **options)
            config = AutoConfig.from_pretrained(self.name, **options)
        if not tokenizer.chat_template:
            raise UserError(
                f"{SETTING}={self.name}: its tokenizer has no chat template. Add the "
                f"chat_template.jinja that it was trained with to its folder."
            )
        return tokenizer, longest(config, tokenizer, self.max_length)

    def load(self, folder: str, device: str) -> Any:
        """The model in eval mode, from where ``name`` is: only safetensors weights, and no code of
        the checkpoint.

        Raises UserError for a model that cannot be loaded or that gives no points.
        """
        from transformers import AutoModelForSequenceClassification

        quiet_progress()
        checkpoints.check_folder(folder, SETTING)
        with checkpoints.loading(folder, SETTING, WAY_OUT):
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=self.dtype,
                output_loading_info=True,
                **checkpoints.weights(folder, self.revision),
            )
        missing = sorted(found["missing_keys"])
        if missing or model.config.num_labels != 1:
            reason = (
                f"its weights have no {missing[0]}"
                if missing
                else f"it tells {model.config.num_labels} classes apart"
            )
            raise UserError(
                f"{SETTING}={folder} is no reward model: {reason}. Name a sequence classifier "
                f"with one output (num_labels 1) and a head that was trained."
            )
        return model.eval().to(device)


@dataclass(frozen=True)
class Rating:
    """How a worker is set up to give points."""

    judge: RewardModel
    runtime: Runtime

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.judge.name,)

    def __call__(self, place: Place) -> Make:
        folder, device = place.here(self.judge.name), place.device(self.runtime)
        return partial(self.rated, self.judge.load(folder, device))

    def rated(self, model: Any, part: pa.Table) -> pa.Table:
        """Points of each token sequence of a part, in batches of their order."""
        padding = model.config.get_text_config().pad_token_id
        sequences = [tuple(tokens) for tokens in part["tokens"].to_pylist()]
        points: list[float] = []
        for start in range(0, len(sequences), self.judge.batch):
            points += logits(model, sequences[start : start + self.judge.batch], padding)
        return pa.table({"points": pa.array(points, pa.float64())})


def tokens_of(tokenizer: Any, item: Item) -> Tokens:
    """The conversation with the response as its last turn, as the chat template writes it."""
    answer: Message = {"role": "assistant", "content": item.text}
    turns = plain_messages(tokenizer, [*item.prompt, answer])
    return tuple(written(tokenizer, turns))


def longest(config: Any, tokenizer: Any, max_length: int) -> int:
    """The tokens that a conversation may have: as many as are asked for and can be held."""
    held = getattr(config.get_text_config(), "max_position_embeddings", None) or max_length
    return int(min(max_length, held, tokenizer.model_max_length))


def logits(model: Any, batch: Sequence[Tokens], padding: int | None) -> list[float]:
    """The model's one output for each sequence, padded on the right with its own padding token.

    A decoder reads its points at the last token that is not the padding's; one without a padding
    token at the very last. A token that no sequence of the batch has then pads without a trace.
    """
    import torch

    if padding is None:
        used = set().union(*batch)
        padding = next(token for token in range(len(used) + 1) if token not in used)
        model.config.get_text_config().pad_token_id = padding
    width = max(map(len, batch))
    rows = [[*tokens, *[padding] * (width - len(tokens))] for tokens in batch]
    real = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in batch]
    with torch.inference_mode():
        found = model(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(real, device=model.device),
        ).logits
    return [float(points) for points in found.float().flatten().tolist()]


def verdict_of(points: float) -> Verdict:
    if math.isfinite(points):
        return Verdict(points, "ok", "")
    return Verdict(None, "unreadable", f"the model's output is {points}")
