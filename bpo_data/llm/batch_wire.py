"""Files and batches at the server, through whatever the network does on the way."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.llm.batch_lines import URL, Batch, batch_of
from bpo_data.llm.endpoint import redact
from bpo_data.llm.failures import Failed
from bpo_data.llm.patience import Patience
from bpo_data.llm.replies import shown
from bpo_data.llm.transport import Wire

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

log = logging.getLogger(__name__)

OURS = "bpo_data"  # in a batch's metadata, with our own name for it
NO_BATCHES = frozenset({404, 405, 501})
UNSURE = frozenset({408, 409})  # refusals after which the work may have been done all the same
DAY = 24 * 3600  # seconds that the server's clock may differ from ours


@dataclass(frozen=True)
class Pace:
    """How batches are cut and waited for; it changes speed, never an answer."""

    lines: int = 50_000
    """Requests in a file; OpenAI's limit."""

    bytes: int = 200_000_000
    """Of a file; OpenAI's limit."""

    first_wait: float = 2.0
    """Seconds between the first two looks at a batch; half as long again each time."""

    longest_wait: float = 60.0
    """Seconds; where that growing ends."""

    settling: float = 20.0
    """Seconds after which a batch whose making was cut off is on the server's list, if ever."""

    lost_for: float = 3600.0
    """Seconds without any look that succeeds, after which a run ends; the batches go on."""


class Unclear(Exception):
    """An answer that was cut off or makes no sense: what it answered may have been done."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BatchWire:
    """An open client to a server with files and batches."""

    def __init__(self, wire: Wire, patience: Patience, pace: Pace) -> None:
        self.wire, self.patience, self.pace = wire, patience, pace
        self.client = wire.client
        self.answered = False
        """Whether the server has answered in this run."""

    async def upload(self, lines: Iterable[bytes]) -> str:
        """The server's name of a file with these lines."""
        with tempfile.TemporaryFile() as file:
            file.writelines(lines)
            async for attempt in self.trying():
                with attempt:
                    file.seek(0)
                    made = await self.client.files.with_raw_response.create(
                        file=("requests.jsonl", file), purpose="batch"
                    )
                    name = str(self.read(made.content, "id")["id"])
                    self.answered = True
                    return name
        raise AssertionError("tenacity either returns or raises")

    async def create(self, id: str, file: str, since: float) -> Batch:
        """The batch, made once: where the answer to its making is lost, the list is asked."""
        from openai import APIError

        unsure = False
        async for attempt in self.trying():
            with attempt:
                if unsure:
                    await asyncio.sleep(self.pace.settling)
                    try:
                        found = await self.find(id, file, since)
                    except APIError as error:  # not a refusal to make it: that is still unsure
                        raise Unclear(self.wire.failed(error).words) from error
                    if found:
                        return found
                try:
                    made = await self.client.batches.with_raw_response.create(
                        input_file_id=file,
                        endpoint=URL,
                        completion_window="24h",
                        metadata={OURS: id},
                    )
                    return batch_of(self.read(made.content, "id", "status"))
                except (APIError, Unclear) as error:
                    unsure = not refuses(error)
                    raise
        raise AssertionError("tenacity either returns or raises")

    async def find(self, id: str, file: str, since: float) -> Batch | None:
        """The batch with our name or input file, of those made after ``since`` (UTC)."""
        last = ""
        while True:
            query = {"after": last} if last else {}
            answer = await self.client.batches.with_raw_response.list(limit=100, extra_query=query)
            page = self.read(answer.content, "data")
            for row in page["data"]:
                if (row.get("metadata") or {}).get(OURS) == id or row.get("input_file_id") == file:
                    return batch_of(row)
            over = not page["data"] or not page.get("has_more") or page["data"][-1]["id"] == last
            if over or page["data"][-1].get("created_at", since) < since - DAY:
                return None
            last = page["data"][-1]["id"]

    async def look_up(self, id: str, file: str, since: float) -> Batch | None:
        """``find``, and once more when the server's list has had time to settle."""
        for wait in (0.0, self.pace.settling):
            await asyncio.sleep(wait)
            async for attempt in self.trying():
                with attempt:
                    found = await self.find(id, file, since)
            if found:
                return found
        return None

    async def look(self, remote: str) -> Batch:
        """The batch as it is now."""
        answer = await self.client.batches.with_raw_response.retrieve(remote)
        batch = batch_of(self.read(answer.content, "id", "status"))
        self.answered = True
        return batch

    def read(self, body: bytes, *fields: str) -> dict[str, Any]:
        """A JSON object that has ``fields``, without the key. Raises Unclear."""
        text = redact(body.decode("utf-8-sig", "replace"), self.wire.key)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or any(found.get(field) is None for field in fields):
            raise Unclear(f"The answer makes no sense: {shown(text)}")
        return found

    async def lines(self, file: str) -> AsyncGenerator[bytes, None]:
        """The lines of a file as they come. Raises Unclear when it ends before its end."""
        rest = b""
        async with self.client.files.with_streaming_response.content(file) as response:
            async for block in whole(response.iter_bytes()):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield line
        yield rest

    def trying(self) -> AsyncRetrying:
        from tenacity import AsyncRetrying, retry_if_exception

        return AsyncRetrying(
            retry=retry_if_exception(self.passes),
            wait=self.pause,
            stop=self.enough,
            before_sleep=self.tell,
            reraise=True,
        )

    def passes(self, error: BaseException) -> bool:
        return isinstance(error, Unclear) or self.patience.worth_another(self.wire.failed(error))

    def enough(self, state: RetryCallState) -> bool:
        """Whether to give up; sooner on a server that is not there at all."""
        attempts = self.patience.attempts
        nobody = self.failed_in(state).nobody and not self.answered
        return state.attempt_number >= (min(3, attempts) if nobody else attempts)

    def pause(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: as the server asks, or a doubling, and some chance."""
        own = self.patience.first_wait * 2 ** (state.attempt_number - 1)
        own = min(self.patience.longest_wait, own)
        asked = self.failed_in(state).wait
        return own * random.uniform(0.5, 1) if asked is None else asked + own * random.random() / 2

    def tell(self, state: RetryCallState) -> None:
        log.warning(
            "%s: batches: retrying after attempt %d of %d (%s)",
            *(self.wire.endpoint.base_url, state.attempt_number, self.patience.attempts),
            self.failed_in(state).words,
        )

    def failed_in(self, state: RetryCallState) -> Failed:
        """Why the last attempt got no answer."""
        error = state.outcome.exception() if state.outcome else None
        return self.wire.failed(error) if error else Failed()

    def fault(self, error: Exception) -> UserError:
        """Why a run cannot go on, and what to do."""
        url, section = self.wire.endpoint.base_url, self.wire.endpoint.section
        failed = self.wire.failed(error)
        if failed.status in NO_BATCHES:
            return UserError(
                f"{section}.base_url={url} has no batches ({failed.status}: {failed.words}). "
                f"Use {self.live()}."
            )
        reply = self.wire.failure(failed, 1, failed.hopeless)  # it raises for a wrong key
        return UserError(
            f"{section}.base_url={url} does not let batches go on: {reply.detail} Those under way "
            f"go on at the server; the same command collects them. Or use {self.live()}."
        )

    def live(self) -> str:
        """The setting that does without batches."""
        return f"{self.wire.endpoint.section.partition('.')[0]}.mode=live"


def refuses(error: BaseException) -> bool:
    """Whether the server said no, so that nothing was made."""
    status = getattr(error, "status_code", None)
    return status is not None and 400 <= status < 500 and status not in UNSURE


async def whole(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``blocks`` to their end. Raises Unclear when the connection ends before."""
    try:
        async for block in blocks:
            yield block
    except Exception as error:  # the transport's own errors, which openai leaves as they are
        raise Unclear(f"The file was cut off: {error}") from error
