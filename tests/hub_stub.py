"""A hub on this machine: the part of its HTTP interface that a push of a dataset uses.

What it holds is what came over the wire: files by LFS or within the commit, as the client chose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stubTokenThatNobodyMaySee0123456789"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(self.messages).encode()).hexdigest()


@dataclass
class Hub:
    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, authorization) of all that came."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by their sha256."""
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Part of ``METHOD /path`` -> (status, words) to answer with."""
    warnings: list[str] = field(default_factory=list)
    """What it says of a card's metadata."""

    def answer(
        self, method: str, path: str, authorization: str, body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """(status, JSON, headers) of one request."""
        self.requests.append((method, path, authorization))
        for part, (status, words) in self.faults.items():
            if part in f"{method} {path}":
                return status, {"error": words.format(authorization=authorization)}, {}
        if method == "PUT":
            found = hashlib.sha256(body).hexdigest()
            assert path == f"/objects/{found}", "the bytes are not those that were announced"
            self.objects[found] = body
            return 200, {}, {}
        if authorization != f"Bearer {TOKEN}":
            words = "Invalid credentials in Authorization header"
            return 401, {"error": words}, {"X-Error-Message": words}
        sent = [json.loads(line) for line in body.splitlines()] if body else [{}]
        if path == "/api/repos/create":
            return self.create(sent[0])
        if path == "/api/validate-yaml":
            said = [{"message": message} for message in self.warnings]
            return 200, {"errors": [], "warnings": said}, {}
        name = "/".join(path.replace("/api", "").removesuffix("/info/lfs/objects/batch")
                        .removesuffix(".git").split("/")[2:4])  # fmt: skip
        there = self.repositories.get(name)
        if there is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if "/preupload/" in path:
            return 200, {"files": [self.mode(one, there) for one in sent[0]["files"]]}, {}
        if path.endswith("/info/lfs/objects/batch"):
            places = [self.place(one) for one in sent[0]["objects"]]
            return 200, {"transfer": "basic", "objects": places}, {}
        if "/commit/" in path:
            return self.commit(there, name, sent)
        assert method == "GET", f"the stub does not know {method} {path}"
        files = [{"rfilename": file} for file in there.files]
        return 200, {"id": name, "sha": there.sha, "private": there.private, "siblings": files}, {}

    def create(self, sent: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        assert sent["type"] == "dataset"
        name = f"{sent['organization']}/{sent['name']}"
        url = f"{self.url}/datasets/{name}"
        if name in self.repositories:
            return 409, {"url": url, "error": "You already created this dataset repo"}, {}
        # Older clients say private, newer ones visibility.
        private = sent.get("private") is True or sent.get("visibility") == "private"
        self.repositories[name] = Repository(private, {".gitattributes": b""})
        return 200, {"url": url}, {}

    def mode(self, one: dict[str, Any], there: Repository) -> dict[str, Any]:
        lfs = one["path"].endswith(".parquet")
        held = there.files.get(one["path"])
        oid = None
        if held is not None:
            git = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
            oid = hashlib.sha256(held).hexdigest() if lfs else git
        mode = "lfs" if lfs else "regular"
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def place(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.objects:
            return one
        return {**one, "actions": {"upload": {"href": f"{self.url}/objects/{one['oid']}"}}}

    def commit(
        self, there: Repository, name: str, sent: list[dict[str, Any]]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        for line in sent:
            value = line["value"]
            if line["key"] == "header":
                there.messages.append(value["summary"])
            elif line["key"] == "file":
                there.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there.files[value["path"]] = self.objects[value["oid"]]
            else:
                raise AssertionError(f"the stub does not know {line['key']}")
        url = f"{self.url}/datasets/{name}/commit/{there.sha}"
        return 200, {"commitUrl": url, "commitOid": there.sha}, {}


@contextmanager
def serving() -> Iterator[Hub]:
    """The hub, on a port of its own, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            authorization = self.headers.get("Authorization") or ""
            status, answer, headers = hub.answer(self.command, path, authorization, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
