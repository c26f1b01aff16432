"""What a model's tokens cost, from a file the user keeps; what it does not hold is unknown."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpo_data import yaml_text
from bpo_data.errors import UserError

LAYOUT = "date: 2026-11-20\nmodels:\n  gpt-4o-mini: {prompt: 0.15, completion: 0.60, batch: 0.5}"
"""The shape of a price file: US dollars for a million tokens; ``batch`` is a factor."""


@dataclass(frozen=True)
class Price:
    prompt: float
    """US dollars for a million tokens sent."""
    completion: float
    """US dollars for a million tokens written."""
    batch: float = 1.0
    """What a request costs in a batch, as a share of the price of a live one."""

    def usd(self, tokens_in: float, tokens_out: float, mode: str = "live") -> float:
        whole = (self.prompt * tokens_in + self.completion * tokens_out) / 1e6
        return whole * (self.batch if mode == "batch" else 1.0)


@dataclass(frozen=True)
class Prices:
    """Prices by the model's name, as they were on a day."""

    date: str = ""
    models: Mapping[str, Price] | None = None
    path: str = ""
    """The file they stand in."""

    def of(self, model: str) -> Price | None:
        """The model's price; None where it is not known."""
        return (self.models or {}).get(model)


def read_prices(path: str) -> Prices:
    """The prices of a file; none at all without a path. Raises UserError, naming file and key."""
    import yaml

    if not path:
        return Prices()
    try:
        whole = yaml.safe_load(yaml_text.read(path))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"budget.prices={path} cannot be read: {reason}") from error
    shape = " ".join(LAYOUT.split())
    if not isinstance(whole, dict) or set(whole) - {"date", "models", "source"}:
        raise wrong(path, f"write date and models, such as: {shape}")
    try:
        date = datetime.date.fromisoformat(str(whole.get("date", ""))).isoformat()
    except ValueError:
        raise wrong(path, "date is missing or no day; write it like 2026-11-20") from None
    models = whole.get("models")
    if not isinstance(models, dict) or not models:
        raise wrong(path, f"it has no models; write them like {shape}")
    read = {str(name): price(path, str(name), row) for name, row in models.items()}
    return Prices(date, read, path)


def price(path: str, model: str, row: Any) -> Price:
    known = ("prompt", "completion", "batch")
    if not isinstance(row, dict) or not {"prompt", "completion"} <= set(row) <= set(known):
        raise wrong(path, f"{model} wants prompt and completion (and batch, if it has one)")
    for name, value in row.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise wrong(path, f"{model}.{name} is {value!r}; give US dollars, 0 or more")
    return Price(**{name: float(value) for name, value in row.items()})


def wrong(path: str, reason: str) -> UserError:
    return UserError(f"budget.prices={path}: {reason}.")
