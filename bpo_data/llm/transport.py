"""The wire: the openai client, what it sends, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.llm.endpoint import Endpoint, redact
from bpo_data.llm.failures import NO_MONEY, Failed, failure_of
from bpo_data.llm.replies import Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CODES = {"context_length_exceeded": "too_long", "content_filter": "filtered"}

NOT_SO = frozenset({400, 413, 422})  # refusals of one body, as it is
LONG = re.compile(r"context length|less than \d+ tokens")
TOO_MUCH = re.compile(r"4(00|13|22): .*(token|length|too (long|large)|batch)", re.DOTALL | re.I)


@dataclass(frozen=True)
class Wire:
    """An open client to one server; it never tries again by itself."""

    endpoint: Endpoint
    key: str
    timeout: float
    client: AsyncOpenAI

    async def send(self, path: str, payload: dict[str, Any]) -> str:
        """The body of a 2xx answer, without the key. Raises Failed, after ``timeout`` seconds in
        all too."""
        import openai

        # Not ``chat.completions.create``: to transform what is already what is sent, and to make
        # objects of an answer that is kept as text, costs as much as the sending.
        kind = openai.HttpxBinaryResponseContent
        try:
            # The client's own time-out is for each read: a slow drip would never end.
            async with asyncio.timeout(self.timeout):
                answer = await self.client.post(path, body=payload, cast_to=kind)
        except (TimeoutError, openai.APIError) as error:
            # `from None`: the library's exception holds the server's words, maybe with the key.
            raise self.failed(error) from None
        return redact(answer.content.decode("utf-8-sig", "replace"), self.key)

    def failed(self, error: BaseException) -> Failed:
        """Why a request got no answer, from an error of the client."""
        return failure_of(error, self.key)

    def failure(self, failed: Failed, attempts: int, hopeless: bool) -> Reply:
        """The state of a request that got no answer. Raises UserError when none can get one."""
        words, status = failed.words, failed.status
        if hopeless:
            section, variable = self.endpoint.section, self.endpoint.key_variable
            unset = "" if os.environ.get(variable) else " (it is not set)"
            way_out = f"Check the key in {variable}{unset}, or change {section}.base_url."
            if status == 404:
                way_out = f"Check {section}.base_url and the name of the model."
            if failed.code == NO_MONEY:
                way_out = f"Pay in with that vendor, or change {section}.base_url."
            words += "" if words.endswith((".", "!", "?")) else "."
            raise UserError(
                f"{section}.base_url={self.endpoint.base_url} answered {status}: {words} {way_out}"
            ) from None
        later = f" It asks to come back in {failed.wait:,.0f} s." if failed.wait else ""
        return refused(status, failed.code, words + later, attempts)


def open_client(endpoint: Endpoint, key: str, timeout: float) -> AsyncOpenAI:
    """The openai client, over aiohttp where that is installed, since it costs half the time."""
    import openai

    more: dict[str, Any] = {}
    if importlib.util.find_spec("aiohttp"):
        with contextlib.suppress(RuntimeError):  # an aiohttp that this openai cannot use
            more["http_client"] = openai.DefaultAioHttpClient()
    return openai.AsyncOpenAI(
        api_key=key, base_url=endpoint.base_url, max_retries=0, timeout=timeout, **more
    )


def refused(status: int | None, code: str, words: str, attempts: int) -> Reply:
    """What came of a request that the server refused; ``status`` None where it gave none."""
    too_long = status in NOT_SO and LONG.search(words)  # many servers give no code of their own
    state = CODES.get(code, "http_error" if status else "no_reply")
    detail = f"{status}: {words}" if status else words
    return Reply("too_long" if too_long else state, attempts=attempts, detail=detail)


def is_about_texts(reply: Reply) -> bool:
    """Whether a body of several texts was refused for one of them, or for their number."""
    return reply.state in ("too_long", "filtered") or TOO_MUCH.match(reply.detail) is not None


def redacted(reply: Reply, key: str) -> Reply:
    """The reply without the key, which in the JSON that it came in may have stood in escapes."""
    return replace(
        reply,
        text=redact(reply.text, key),
        finish=redact(reply.finish, key),
        detail=redact(reply.detail, key),
    )
