"""What a loss is: a pure function, where it comes from, and what it needs beside two numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpo_data.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor

RATIO = "ratio"
"""The two numbers are c_w and c_l: log pi - log ref of chosen and rejected, in nats."""
LOG_PROB = "log_prob"
"""They are log pi(chosen) and log pi(rejected) in nats: the loss has no reference."""
LIST = "list"
"""One (n, k) tensor of c of k responses of a prompt, instead of two numbers."""
TOKENS = ("chosen_tokens", "rejected_tokens")
"""Columns of the responses' lengths in tokens, the end token included."""


def per_token(log_prob: Tensor, tokens: Tensor) -> Tensor:
    """Means over a response's tokens, (n,) in nats; of none it is 0."""
    return log_prob / tokens.clamp(min=1)


@dataclass(frozen=True)
class Range:
    """The values that an option may take: numbers from ``low`` to ``high``, or ``words``."""

    low: float = float("-inf")
    high: float = float("inf")
    open: bool = False
    """Whether the ends themselves are left out."""

    words: tuple[Any, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if self.words:
            return value in self.words
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        return bool(inside)

    def __str__(self) -> str:
        if self.words:
            return f"one of {', '.join(map(str, self.words))}"
        between = "between" if self.open else "from"
        return f"a number {between} {self.low:g} {'and' if self.open else 'to'} {self.high:g}"


@dataclass(frozen=True)
class Loss:
    """An entry of ``losses.LOSSES``."""

    function: Callable[..., Tensor]
    source: str
    """Paper and equation, and whether we saw it there."""

    options: Mapping[str, Range] = field(default_factory=dict)
    """Its parameters and what they may be; defaults are the function's own."""

    measures: str = RATIO
    """What its numbers are: ``RATIO``, ``LOG_PROB`` or ``LIST``."""

    columns: tuple[str, ...] = ()
    """Further (n,) columns it cannot do without."""

    may_have: tuple[str, ...] = ()
    """Columns it uses where there are any."""

    two_betas: bool = False
    """Whether it is a function of beta times c_w and beta times c_l, so that each may have a beta
    of its own."""

    in_trl: bool = False
    """Whether TRL's DPOTrainer has it under the same name."""

    def __call__(self, *sides: Any, **rest: Any) -> Tensor:
        """The function itself."""
        return self.function(*sides, **rest)

    @property
    def of_pairs(self) -> bool:
        """Whether two numbers, and the lengths at most, settle it: then gradients of pairs follow
        from gradients of responses."""
        return self.measures != LIST and set(self.columns) <= set(TOKENS)

    def defaults(self) -> dict[str, Any]:
        """The options as they are when nobody sets them."""
        known = inspect.signature(self.function).parameters
        return {name: known[name].default for name in self.options}

    def taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options that are its own."""
        return {name: value for name, value in options.items() if name in self.options}

    def unknown_options(self, options: Mapping[str, Any], section: str) -> Iterator[str]:
        """One line for each option that it does not have."""
        for name in options:
            if name not in self.options:
                yield (
                    f"{section}.loss_options.{name} is no option of this loss."
                    f"{nearest(name, self.options)} It has {', '.join(self.options) or 'none'}."
                )

    def problems(self, options: Mapping[str, Any], setting: str) -> Iterator[str]:
        """One line for each of its own options that is out of range."""
        for name, value in self.taken(options).items():
            if value not in self.options[name]:
                yield f"{setting}.{name}={value}: use {self.options[name]}."


def unknown(name: str, known: Mapping[str, Loss]) -> str:
    """A sentence on a name that is no loss."""
    return f"no loss {name!r}; choose from {', '.join(known)}.{nearest(name, known)}"
