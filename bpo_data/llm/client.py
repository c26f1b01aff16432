"""Chat requests to an OpenAI-compatible server: what the store lacks is asked, nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError, some
from bpo_data.llm.endpoint import Endpoint, redact
from bpo_data.llm.patience import NO_MONEY, Patience
from bpo_data.llm.replies import ANSWERED, STATES, Reply, read_completion, shown
from bpo_data.llm.store import RequestStore, key_of, request_text
from bpo_data.tables import Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

__all__ = ["STATES", "Endpoint", "Patience", "Reply", "Request", "complete"]

log = logging.getLogger(__name__)

DEFAULT_PATIENCE = Patience()
QUIET = 10.0  # seconds between two lines about waiting
LOST = 8  # requests in a row without any server, after which the run stops
HOPELESS = frozenset({401, 403, 404})  # whoever asks gets the same: the run cannot work
CODES = {"context_length_exceeded": "too_long", "content_filter": "filtered"}

OnDone = Callable[[int, Reply, bool], None]


@dataclass(frozen=True)
class Request:
    """One chat request. Every sampling setting is sent: servers' own defaults differ."""

    messages: Sequence[Message]
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    """Tokens, of reasoning and answer together on most servers."""

    seed: int
    extra: Mapping[str, Any] | None = None
    """Further fields, such as ``response_format``. None as a value takes a field out, for servers
    that refuse it: ``{"max_tokens": None, "max_completion_tokens": 512}``."""

    def payload(self) -> dict[str, Any]:
        """The JSON body as it is sent."""
        body: dict[str, Any] = {
            "messages": [{"role": m["role"], "content": m["content"]} for m in self.messages],
            "model": self.model,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_tokens": int(self.max_tokens),
            "seed": int(self.seed),
            **(self.extra or {}),
        }
        return {name: value for name, value in body.items() if value is not None}

    def text(self, endpoint: Endpoint, draw: int) -> str:
        """All that the answer depends on; ``key_of`` this is its place in the store."""
        return request_text(endpoint.base_url, self.payload(), draw)


def complete(
    requests: Sequence[tuple[Request, int]],
    *,
    endpoint: Endpoint,
    store: RequestStore,
    concurrency: int,
    on_done: OnDone | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> list[Reply]:
    """A reply for each (request, draw), in their order; equal pairs are asked once.

    Answers are in the store before they are returned or shown to ``on_done(index, reply,
    fresh)``; ``fresh`` is false for those that the store held before. Failures (states outside
    ``ANSWERED``) are returned but not stored, so a later run asks again. Raises UserError when
    there is no key, or when the server refuses every request alike (401, 403, 404, no quota);
    what was answered until then, or until Ctrl-C, stays in the store.
    """
    keys = [key_of(request.text(endpoint, draw)) for request, draw in requests]
    held = store.get_many(keys)
    wanted: dict[str, list[int]] = {}
    replies: dict[int, Reply] = {}
    for index, key in enumerate(keys):
        if key in held:
            replies[index] = held[key]
            if on_done:
                on_done(index, held[key], False)
        else:
            wanted.setdefault(key, []).append(index)

    def settle(key: str, reply: Reply) -> None:
        if reply.state in ANSWERED:
            request, draw = requests[wanted[key][0]]
            reply = store.put(key, request.text(endpoint, draw), reply)
        for index in wanted[key]:
            replies[index] = reply
            if on_done:
                on_done(index, reply, True)

    if wanted:
        asker = Asker(endpoint, endpoint.key(), patience)
        jobs = ((key, requests[indices[0]][0]) for key, indices in wanted.items())
        asyncio.run(asker.ask_all(jobs, max(1, min(concurrency, len(wanted))), settle))
    return [replies[index] for index in range(len(requests))]


def check_failures(replies: Sequence[Reply], max_failed: float, section: str) -> None:
    """Raise UserError when more than this share of requests ended without an answer.

    A prompt too long for the server is an answer of a kind: asking again would not change it.
    """
    failed = [reply for reply in replies if reply.state in ("http_error", "malformed")]
    if len(failed) > max_failed * len(replies):
        raise UserError(
            f"{section}: {len(failed):,} of {some(len(replies), 'request')} failed, the last with: "
            f"{failed[-1].detail or failed[-1].state} The other replies are kept; run the same "
            f"command again to ask for these alone, or raise {section}.max_failed "
            f"(now {max_failed:g})."
        )


def no_server(error: BaseException | None) -> bool:
    """Whether nobody took the connection, as against a server that is slow."""
    import openai

    found = isinstance(error, openai.APIConnectionError)
    return found and not isinstance(error, openai.APITimeoutError)


@dataclass
class Asker:
    """Sends requests, waits and asks again; lives as long as one ``complete``."""

    endpoint: Endpoint
    key: str
    patience: Patience
    told: float = float("-inf")
    """``time.monotonic()`` of the last line about waiting."""
    retried: int = 0
    """Attempts that failed and are made again, since that line."""
    lost: int | None = None
    """Requests in a row that found no server at all; None until there was an answer."""

    async def ask_all(
        self,
        jobs: Iterator[tuple[str, Request]],
        workers: int,
        settle: Callable[[str, Reply], None],
    ) -> None:
        """Each job to one of ``workers``; the first exception ends all of them."""
        from openai import AsyncOpenAI

        # No await between an answer's last byte and `settle`: nothing can cancel in between, so
        # an answer that was received is always stored.
        async def work(client: AsyncOpenAI) -> None:
            for name, request in jobs:
                settle(name, await self.ask(client, request.payload()))

        async with AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.base_url,
            max_retries=0,
            timeout=self.patience.timeout,
        ) as client:
            tasks = [asyncio.create_task(work(client)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, client: AsyncOpenAI, payload: dict[str, Any]) -> Reply:
        """Send until there is an answer, a failure that will not pass, or no attempt left."""
        import openai
        from tenacity import AsyncRetrying, retry_if_exception

        attempts = 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(self.patience.worth_another),
                wait=self.patience.wait,
                stop=self.enough,
                before_sleep=self.tell,
                reraise=True,
            ):
                attempts += 1
                with attempt:
                    body = await self.send(client, payload)
        except (TimeoutError, openai.APIError) as error:
            return self.failure(error, attempts)
        self.lost = 0
        reply = read_completion(redact(body.decode("utf-8-sig", "replace"), self.key), attempts)
        # Once more: in JSON the key may have stood in escapes.
        return replace(
            reply,
            text=redact(reply.text, self.key),
            finish=redact(reply.finish, self.key),
            detail=redact(reply.detail, self.key),
        )

    def enough(self, state: RetryCallState) -> bool:
        """Whether to give up; sooner on a server that has not answered at all in this run."""
        error = state.outcome.exception() if state.outcome else None
        nobody = self.lost is None and no_server(error)
        return state.attempt_number >= (
            min(3, self.patience.attempts) if nobody else self.patience.attempts
        )

    async def send(self, client: AsyncOpenAI, payload: dict[str, Any]) -> bytes:
        """The body of a 2xx answer. ``extra_body`` overrides, so ``payload`` is what is sent."""
        # The client's own time-out is for each read: a slow drip would never end.
        async with asyncio.timeout(self.patience.timeout):
            answer = await client.chat.completions.with_raw_response.create(
                messages=[], model="", extra_body=payload
            )
        return answer.content

    def failure(self, error: Exception, attempts: int) -> Reply:
        """The state of a request that got no answer. Raises UserError when none can get one."""
        words = self.words(error)
        if no_server(error):
            self.count_lost(words, attempts)
        status = getattr(error, "status_code", None)
        code = getattr(error, "code", None) or ""
        if status in HOPELESS or code == NO_MONEY:
            section, variable = self.endpoint.section, self.endpoint.key_variable
            way_out = (
                f"Check {section}.base_url and the name of the model."
                if status == 404
                else f"Check the key in {variable}, or change {section}.base_url."
            )
            # `from None`: the library's exception holds the server's words, maybe with the key.
            raise UserError(
                f"{section}.base_url={self.endpoint.base_url} answered {status}: {words} {way_out}"
            ) from None
        too_long = status == 400 and "context length" in words  # vLLM gives no code of its own
        state = "too_long" if too_long else CODES.get(code, "http_error")
        detail = f"{status}: {words}" if status else words
        return Reply(state, attempts=attempts, detail=detail)

    def count_lost(self, words: str, attempts: int) -> None:
        """Raise UserError when the server is not there, rather than try every row in turn."""
        if self.lost is not None:
            self.lost += 1
        if self.lost is None or self.lost >= LOST:
            raise UserError(
                f"{self.endpoint.section}.base_url={self.endpoint.base_url} does not answer after "
                f"{some(attempts, 'attempt')}: {words} Start the server or check the address; the "
                f"replies so far are kept, and the same command goes on from them."
            )

    def words(self, error: BaseException) -> str:
        """What the server said, or what went wrong on the way, on one line and without the key."""
        body = getattr(error, "body", None)
        if isinstance(body, Mapping) and isinstance(body.get("message"), str):
            body = body["message"]
        said = str(body or getattr(error, "message", "") or "Request timed out.")
        return shown(redact(said, self.key))

    def tell(self, state: RetryCallState) -> None:
        """A line now and then while requests wait, so that a slow run does not look stuck."""
        self.retried += 1
        now = time.monotonic()
        if now - self.told < QUIET:
            return
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "%s: %s to make again; the last in %.0f s, after attempt %d of %d (%s)",
            self.endpoint.base_url,
            some(self.retried, "request"),
            state.next_action.sleep if state.next_action else 0,
            state.attempt_number,
            self.patience.attempts,
            self.words(error) if error else "",
        )
        self.told, self.retried = now, 0
