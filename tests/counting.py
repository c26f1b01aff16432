"""A server that counts: each request gets an answer of its own, late, and when it went is kept."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import replace

from bpo_data.llm.stub import Fault, Payload, StubServer

SLACK = 0.25
"""Seconds before a kill from which an answer may be lost: it is in a socket, or being read. On a
quiet machine 0.01 was the most that was seen."""


class Heard:
    """For ``StubServer(log=...)``: when each answer was written to its last byte."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, str]] = []
        """``time.monotonic()`` and the body's digest."""

    def write(self, line: str) -> int:
        answer = json.loads(line)
        if answer["whole"] and answer["status"] == 200:
            self.answers.append((time.monotonic(), answer["body"]))
        return len(line)

    def flush(self) -> None:
        pass


def reply(payload: Payload) -> str:
    """A verdict that depends on the answer, or an answer that no other request gets."""
    asked = payload["messages"][-1]["content"]
    drawn = hashlib.sha256(f"{payload['seed']} {asked}".encode()).hexdigest()
    if payload["model"] == "judge":
        return json.dumps({"reason": "a coin said so", "score": 1 + int(drawn, 16) % 10})
    return f"answer {drawn[:16]}"


class Server(StubServer):
    """Answers after 20 ms to ``longest`` seconds, so that a kill meets requests in every state."""

    def __init__(self, longest: float = 0.18) -> None:
        self.heard = Heard()
        self.longest = longest
        self.random = random.Random(0)
        super().__init__(reply, fault_rule=self.late, log=self.heard)

    def late(self, payload: Payload, before: int) -> Fault:
        return replace(self.answer(payload), wait=self.random.uniform(0.02, self.longest))
