"""Progress for a log, where there is no terminal to draw a bar on."""

from __future__ import annotations

import logging
import time

from bpo_data.words import lasting

MINUTE = 60.0  # seconds between two lines in a log


class Pulse:
    """Progress for a log: a line each minute, in the words and with the methods of a bar."""

    def __init__(self, stage: str, total: int | None, unit: str) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.n = self.initial = 0
        self.begun = self.told = time.monotonic()

    def __enter__(self) -> Pulse:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def update(self, count: float) -> None:
        self.n += int(count)
        now = time.monotonic()
        if now - self.told >= MINUTE:
            self.told = now
            of = f" of {self.total:,}" if self.total else ""
            spent = lasting(now - self.begun)
            text = f"{self.n:,}{of} {self.unit}, {spent} so far"
            logging.getLogger("bpo_data").info("%-10s %s", self.stage, text)

    def reset(self, total: int | None = None) -> None:
        self.n, self.total = 0, total

    def refresh(self) -> None:
        """Nothing is drawn that could be drawn anew."""

    def set_postfix_str(self, text: str) -> None:
        """What is under way is told by those who ask servers, in lines of their own."""
