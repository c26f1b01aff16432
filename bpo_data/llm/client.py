"""Requests to an OpenAI-compatible server: what the store lacks is asked, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bpo_data import stopping
from bpo_data.engines.lines import Lines, OpenLines, no_lines
from bpo_data.errors import UserError, some
from bpo_data.llm.asker import Asker, watch
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.limits import Gate, Limits
from bpo_data.llm.patience import Patience
from bpo_data.llm.replies import FAILED, STATES, Reply
from bpo_data.llm.requests import Askable, EmbeddingRequest, Parcel, Request, keyed, parcels
from bpo_data.llm.senders import lines_for, open_wire, sending
from bpo_data.llm.store import RequestStore
from bpo_data.llm.syncing import Syncer
from bpo_data.llm.till import Account
from bpo_data.llm.turns import in_turn

__all__ = [
    "STATES",
    "Account",
    "EmbeddingRequest",
    "Endpoint",
    "Limits",
    "Patience",
    "Reply",
    "Request",
    "check_failures",
    "complete",
]

DEFAULT_PATIENCE = Patience()
DEFAULT_ACCOUNT = Account()
AHEAD = 2
"""Workers for each request that may be under way: while some wait for the disk, others send."""

EARLY = 10
"""Failures that no share of failures stops before all is asked: the rest is worth having."""

OnDone = Callable[[int, Reply, bool], None]


def complete(
    requests: Sequence[tuple[Askable, int]],
    *,
    endpoint: Endpoint,
    store: RequestStore,
    limits: Limits,
    account: Account = DEFAULT_ACCOUNT,
    patience: Patience = DEFAULT_PATIENCE,
    on_done: OnDone | None = None,
    shown: Callable[[str], None] | None = None,
    max_failed: float = 1.0,
    lines: OpenLines = no_lines,
) -> list[Reply]:
    """A reply for each (request, draw), in their order; equal pairs are asked once.

    Answers are in the store before they are returned or shown to ``on_done(index, reply,
    fresh)``; ``fresh`` is false for those that the store held before. Failures (states outside
    ``ANSWERED``) are returned but not stored, so a later run asks again. ``shown`` is told twice
    a second what is under way. ``lines`` opens those to processes that send in place of this one.
    Raises UserError when there is no key, when the server refuses
    every request alike (401, 403, 404, no quota), or as soon as more than the share
    ``max_failed`` (and more than ``EARLY``) has failed; what was answered until then, or until
    Ctrl-C, stays in the store.
    """
    work = Work(list(keyed(requests, endpoint)), endpoint, store, on_done, max_failed)
    missing = work.take_held()
    if missing:
        refuse_batched(work, missing)
        key = endpoint.key()
        senders = lines_for(missing, endpoint, lines)
        try:
            with asyncio.Runner(loop_factory=in_turn) as runner:
                runner.run(ask(work, missing, key, senders, limits, account, patience, shown))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return [work.replies[index] for index in range(len(requests))]


def refuse_batched(work: Work, missing: list[tuple[str, Askable, str]]) -> None:
    """Raise UserError where a batch at the server is going to answer: live it is paid for twice."""
    waiting = work.store.in_batches((key for key, _, _ in missing), gone=False)
    if waiting:
        section = work.endpoint.section.partition(".")[0]
        raise UserError(
            f"{section}: {some(len(waiting), 'request')} of {len(work.requests):,} wait in a batch "
            f"at {work.endpoint.base_url}. Collect it with {section}.mode=batch."
        )


@dataclass
class Work:
    """The requests of one ``complete``, and the replies so far by their place."""

    requests: list[tuple[str, Askable, str]]
    endpoint: Endpoint
    store: RequestStore
    on_done: OnDone | None
    max_failed: float

    def __post_init__(self) -> None:
        self.replies: dict[int, Reply] = {}
        self.failed = 0
        self.places: dict[str, list[int]] = {}
        for place, (key, _, _) in enumerate(self.requests):
            self.places.setdefault(key, []).append(place)

    def take_held(self) -> list[tuple[str, Askable, str]]:
        """Take what the store holds; each request that it lacks, once."""
        held = self.store.get_many(self.places)
        for key in self.places:
            if key in held:
                self.take(key, held[key], fresh=False)
        return [self.requests[places[0]] for key, places in self.places.items() if key not in held]

    def settle(self, key: str, reply: Reply, fresh: bool) -> None:
        self.take(key, reply, fresh)
        if reply.state not in FAILED:
            return
        self.failed += len(self.places[key])
        if self.failed > max(EARLY, self.max_failed * len(self.requests)):
            raise too_many(self.failed, len(self.requests), reply, self.endpoint, self.max_failed)

    def take(self, key: str, reply: Reply, fresh: bool) -> None:
        for place in self.places[key]:
            self.replies[place] = reply
            if self.on_done:
                self.on_done(place, reply, fresh)


async def ask(
    work: Work,
    missing: list[tuple[str, Askable, str]],
    key: str,
    senders: Lines | None,
    limits: Limits,
    account: Account,
    patience: Patience,
    shown: Callable[[str], None] | None,
) -> None:
    """Ask for what is missing; ends with everything that came on disk, whatever ends it."""
    waiting = deque(missing)
    jobs: Iterator[Parcel] = iter(parcels(waiting.popleft() for _ in range(len(missing))))
    gate = Gate(limits, patience.first_wait, patience.longest_wait)
    own = open_wire(work.endpoint, key, patience.timeout)
    with Syncer(work.store) as syncer, stopping.cancels(this_task()), at_rest():
        async with own.client, sending(own, senders) as wire:
            asker = Asker(wire, gate, syncer, account, patience, work.settle, lambda: jump(waiting))
            watcher = asyncio.create_task(watch(asker, shown)) if shown else None
            try:
                await asker.ask_all(jobs, min(AHEAD * limits.at_once, len(missing)))
            finally:
                if watcher:
                    watcher.cancel()


def jump(waiting: deque[Any]) -> None:
    """Go on at a place drawn by lot: two runs that ask for the same in one order would ask for
    all of it twice."""
    waiting.rotate(-random.randrange(len(waiting) + 1))


@contextlib.contextmanager
def at_rest() -> Iterator[None]:
    """Garbage is not looked for among what is there already: through all the objects of our
    libraries that takes 0.1 s, in which no answer is read."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "called from a coroutine"
    return task


def check_failures(replies: Sequence[Reply], max_failed: float, section: str) -> None:
    """Raise UserError when more than this share of requests ended without an answer.

    A prompt too long for the server is an answer of a kind: asking again would not change it.
    """
    failed = [reply for reply in replies if reply.state in FAILED]
    if len(failed) > max_failed * len(replies):
        endpoint = Endpoint(section=section)
        raise too_many(len(failed), len(replies), failed[-1], endpoint, max_failed)


def too_many(
    failed: int, requests: int, last: Reply, endpoint: Endpoint, max_failed: float
) -> UserError:
    section = endpoint.section
    return UserError(
        f"{section}: {failed:,} of {some(requests, 'request')} failed, the last with: "
        f"{last.detail or last.state} The other replies are kept; run the same command again to "
        f"ask for the rest, or raise {section}.max_failed (now {max_failed:g})."
    )
