"""Which responses are measured together, and where their tokens lie.

Responses to one prompt share its tokens. A batch is two flat sequences without padding: the
``shared`` one holds each prompt but its last token, the ``own`` one holds for every response the
prompt's last token and the response without its own last, so that each of its tokens predicts a
token of the response and nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch


@dataclass(frozen=True)
class Group:
    """A prompt and responses to it, by their row numbers, longest response first."""

    rows: tuple[int, ...]
    tokens: int
    """Tokens the group costs: the prompt once and every response."""

    shared: int
    """Tokens of the prompt."""


TURNS = 4
"""Every response keeps a gradient on its prompt's keys and values: at most so many times the
batch's tokens. Of a token that is about a twentieth of what its other activations take."""


def groups(
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    tokens: int,
) -> list[Group]:
    """These rows, with equal prompts together, at most ``tokens`` to a group (or a single row)."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(prompts[row]), []).append(row)
    made = []
    for prompt, found in by_prompt.items():
        start = len(prompt)
        group: list[int] = []
        total = start
        for row in sorted(found, key=lambda row: -len(responses[row])):
            crowded = (len(group) + 1) * start > TURNS * tokens
            if group and (crowded or total + len(responses[row]) > tokens):
                made.append(Group(tuple(group), total, start))
                group, total = [], start
            group.append(row)
            total += len(responses[row])
        made.append(Group(tuple(group), total, start))
    return made


def batches(made: Sequence[Group], tokens: int) -> list[list[Group]]:
    """Groups of like numbers of responses and like lengths together, within ``tokens``.

    A group that is longer than that is a batch of its own.
    """
    out: list[list[Group]] = []
    room = shared = 0
    for group in sorted(made, key=lambda group: (-len(group.rows), -group.tokens)):
        # The first group of a batch has the most responses.
        crowded = out and len(out[-1][0].rows) * (shared + group.shared) > TURNS * tokens
        if not out or crowded or group.tokens > room:
            out.append([])
            room, shared = tokens, 0
        out[-1].append(group)
        room -= group.tokens
        shared += group.shared
    return out


@dataclass(frozen=True)
class Tile:
    """Neighbouring rows of a flat sequence that attention takes in one call."""

    start: int
    lengths: tuple[int, ...]
    prefix: tuple[int, int] = (0, 0)
    """Where the rows' shared tokens start and end."""

    first: int = 0
    """The number, within its group, of the tile's first row."""

    @property
    def end(self) -> int:
        return self.start + sum(self.lengths)


SHORT = 32
"""Rows up to this long are padded to one another freely: a call costs more than the padding."""


def tiles(lengths: Sequence[int], start: int = 0, prefix: tuple[int, int] = (0, 0)) -> list[Tile]:
    """Cut rows of falling lengths into tiles whose rows are alike in length."""
    made: list[Tile] = []
    current: list[int] = []
    first = 0
    for number, length in enumerate(lengths):
        if current and not (current[0] <= SHORT or length >= 0.8 * current[0]):
            made.append(Tile(start, tuple(current), prefix, first))
            start, current, first = start + sum(current), [], number
        current.append(length)
    if current:
        made.append(Tile(start, tuple(current), prefix, first))
    return made


@dataclass(frozen=True)
class Flat:
    """One flat sequence of segments."""

    tokens: torch.Tensor
    """(1, count) int64."""

    positions: torch.Tensor
    """(1, count) int64: each token's place in its prompt and response."""

    grid: torch.Tensor
    """(segments, longest) int64: where each segment's tokens lie; ``count`` where it has ended."""

    tiles: tuple[Tile, ...]

    @classmethod
    def of(
        cls,
        segments: Sequence[Sequence[int]],
        starts: Sequence[int],
        tiles: Sequence[Tile],
        device: torch.device,
    ) -> Flat:
        """``starts`` are the positions of the segments' first tokens."""
        lengths = [len(segment) for segment in segments]
        tokens = np.concatenate([np.asarray(segment, np.int64) for segment in segments])
        positions = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        arrays = (tokens[None], np.concatenate(positions)[None], _grid(lengths))
        ids, places, grid = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(ids, places, grid, tuple(tiles))


def _grid(lengths: Sequence[int]) -> np.ndarray:
    """(rows, longest): the numbers 0, 1, ... row after row; their count past a row's end.

    At least two of both, with empty rows: torch.compile makes another graph for a size of one.
    """
    count = np.asarray([*lengths, 0] if len(lengths) == 1 else lengths)[:, None]
    place = np.arange(max(2, count.max()))
    return np.where(place < count, place + count.cumsum()[:, None] - count, count.sum())


@dataclass(frozen=True)
class Packed:
    """A batch: prompts once, every response with the prompt's last token before it."""

    rows: tuple[int, ...]
    """The row numbers of ``own``'s segments."""

    own: Flat
    targets: torch.Tensor
    """(own tokens,) int64: the token that each one predicts."""

    shared: Flat | None
    """None where no prompt has more than one token."""

    tokens: int
    """Of both sequences."""

    passes: tuple[tuple[list[int], list[int]], ...]
    """For the i-th response of each prompt: which segments of ``shared`` have one, and which
    segments of ``own`` those are."""

    @property
    def own_grid(self) -> torch.Tensor:
        """(rows, longest response) int64: where a row's targets lie; their count past its end."""
        return self.own.grid

    @classmethod
    def of(
        cls,
        batch: Sequence[Group],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        device: torch.device,
    ) -> Packed:
        ordered = sorted(batch, key=lambda group: -len(prompts[group.rows[0]]))
        asked = [prompts[group.rows[0]] for group in ordered]
        shared = [prompt[:-1] for prompt in asked]
        ends = list(accumulate(map(len, shared)))
        own, starts, targets, cut = [], [], [], []
        rows: list[int] = []
        passes: list[tuple[list[int], list[int]]] = []
        begin = 0
        for number, (group, prompt) in enumerate(zip(ordered, asked, strict=True)):
            lengths = [len(responses[row]) for row in group.rows]
            prefix = (ends[number] - len(shared[number]), ends[number])
            cut += tiles(lengths, begin, prefix)
            begin += sum(lengths)
            for turn, row in enumerate(group.rows):
                if len(shared[number]):
                    while len(passes) <= turn:
                        passes.append(([], []))
                    passes[turn][0].append(number)
                    passes[turn][1].append(len(rows))
                own.append([prompt[-1], *responses[row][:-1]])
                starts.append(len(prompt) - 1)
                targets.append(np.asarray(responses[row], np.int64))
                rows.append(row)
        kept = [segment for segment in shared if len(segment)]
        return cls(
            tuple(rows),
            Flat.of(own, starts, cut, device),
            torch.from_numpy(np.concatenate(targets)).to(device),
            Flat.of(kept, [0] * len(kept), tiles([len(s) for s in kept]), device) if kept else None,
            sum(map(len, own)) + sum(map(len, kept)),
            tuple(passes),
        )


@dataclass(frozen=True)
class Padded:
    """Whole sequences padded on the right, where a causal model cannot look.

    They come without their last token, which predicts nothing.
    """

    rows: tuple[int, ...]
    tokens: torch.Tensor
    """(rows, length) int64."""

    grid: torch.Tensor
    """(rows, length) int64: where each row's tokens lie once they are laid end to end."""

    place: torch.Tensor
    """(count,) int64: where the tokens lie that predict the responses' tokens ..."""

    targets: torch.Tensor
    """(count,) int64: ... and these tokens."""

    own_grid: torch.Tensor
    """(rows, longest response) int64: where each row's targets lie; ``count`` past its end."""

    @classmethod
    def of(
        cls,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        device: torch.device,
        last: bool = False,
    ) -> Padded:
        """``last`` keeps the last token of the longest row, for a model that counts tokens."""
        length = max(len(prompts[row]) + len(responses[row]) for row in rows) - (not last)
        tokens = np.zeros((len(rows), length), np.int64)
        place = []
        for number, row in enumerate(rows):
            ids = [*prompts[row], *responses[row]]
            tokens[number, : len(ids)] = ids[:length]
            start = number * length - 1
            place.append(np.arange(start + len(prompts[row]), start + len(ids)))
        arrays = (
            tokens,
            np.arange(tokens.size).reshape(tokens.shape),
            np.concatenate(place),
            np.concatenate([np.asarray(responses[row], np.int64) for row in rows]),
            _grid([len(responses[row]) for row in rows]),
        )
        return cls(tuple(rows), *(torch.from_numpy(array).to(device) for array in arrays))


def padded_batches(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split rows into batches of like length, longest first.

    A batch's longest row times its number of rows stays within ``tokens``; a row longer than that
    is a batch of its own. Equal lengths keep their order, every row is in one batch.
    """
    made: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= tokens:
            made[-1].append(row)
        else:
            made.append([row])
    return made
