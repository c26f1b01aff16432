"""A small OpenAI-compatible server on loopback that counts, answers by rule and fails on order."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What to send instead of an answer."""

    status: int = 200
    body: str = ""
    """``{authorization}`` in it becomes the request's own Authorization header."""

    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the reply."""

    drip: float = 0.0
    """Seconds between two bytes."""


def refused(status: int, words: str, headers: dict[str, str] | None = None, **more: Any) -> Fault:
    """An error in OpenAI's shape."""
    return Fault(status, json.dumps({"error": {"message": words, **more}}), headers or {})


def busy(retry_after: str | None = None) -> Fault:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return refused(429, "Rate limit reached", headers)


def echo_key(status: int = 401) -> Fault:
    return refused(status, "Wrong credentials: {authorization}")


def message(content: Any, finish: str | None = "stop", **more: Any) -> Fault:
    """A well-formed completion with whatever message a test wants."""
    return Fault(body=json.dumps(completion({"content": content, **more}, finish)))


def completion(said: Payload, finish: str | None) -> Payload:
    return {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }


def default_reply(payload: Payload) -> str:
    """Words that depend on the messages and the seed alone."""
    whole = json.dumps([payload["messages"], payload.get("seed")], sort_keys=True)
    return f"answer {hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def written(payload: Payload) -> str:
    return json.dumps(payload, sort_keys=True)


class StubServer:
    """``with StubServer(reply) as server:`` serves chat completions at ``server.url``.

    ``reply(payload)`` gives the words. ``faults`` are sent one a request, in order of arrival,
    None meaning a proper answer; after the last one all is well. ``latency`` is in seconds.
    """

    def __init__(
        self,
        reply: Callable[[Payload], str] = default_reply,
        faults: Iterable[Fault | None] = (),
        latency: float = 0.0,
    ) -> None:
        self.reply = reply
        self.faults = list(faults)
        self.latency = latency
        self.payloads: list[Payload] = []
        """Bodies received, in order of arrival."""
        self.arrivals: list[float] = []
        """``time.monotonic()`` of each."""
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def asked(self) -> Counter[str]:
        """How often each body came, by its ``written`` form."""
        with self.lock:
            return Counter(map(written, self.payloads))

    def answer(self, payload: Payload) -> Fault:
        with self.lock:
            self.payloads.append(payload)
            self.arrivals.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.latency)
        with self.lock:
            self.at_once -= 1
        return fault or message(self.reply(payload))

    def __enter__(self) -> StubServer:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away (killed, timed out) is no news."""


def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                return self.send(refused(404, f"no such path {self.path}"))
            self.send(stub.answer(json.loads(body)))

        def send(self, fault: Fault) -> None:
            words = fault.body.replace("{authorization}", self.headers["Authorization"] or "")
            body = words.encode("utf-8", "surrogatepass")
            self.send_response(fault.status)
            for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + 100 * fault.cut))
            self.end_headers()
            if fault.drip:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(fault.drip)
            else:
                self.wfile.write(body)
            self.close_connection = fault.cut

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
