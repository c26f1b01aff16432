"""The command with senders: the artifacts and the requests of one process, on every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from forking import fork
from helpers import ROOT
from test_client import environment
from test_server_pipeline import arguments, policy, reply

from bpo_data.llm.stub import StubServer

__all__ = ["policy"]

pytestmark = pytest.mark.slow

SPREAD = """
import sys
from bpo_data.llm import client, senders
from bpo_data.pipelines.run import main
from sender_lines import ready
senders.WORTH, client.sending = 0, ready
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""The command line with senders for all requests, however few."""


def run(folder: Path, *words: str, ray: bool = False) -> tuple[int, str, str]:
    if not ray:
        with fork(["-c", SPREAD, *words], environment(), ROOT) as process:
            out, error = process.communicate(timeout=240)
        return process.wait(), out, error
    script = folder / "spread.py"
    script.write_text(SPREAD)
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=environment(),
        cwd=ROOT,
        timeout=240,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def made(folder: Path, policy: Path, engine: str) -> tuple[dict[str, str], Counter[str], str]:
    """(digests by stage, how often each body came, what was said) of a run against a server."""
    with StubServer(reply=reply, latency=0.02) as server:
        words = [
            *arguments(folder, policy, server.url, "evaluate"), "train.steps=2",
            "evaluate.max_tokens=8", "embed.kind=server", "embed.options.model=vectors",
            f"embed.options.base_url={server.url}", f"runtime.engine={engine}",
            "runtime.device=cpu", f"runtime.folder={folder}/{engine}",
        ]  # fmt: skip
        if engine != "local":
            words.append("runtime.processes=2")
        status, _, error = run(folder, *words, ray=engine == "ray")
        assert status == 0, error[-3000:]
        asked = server.asked()
    found = {}
    for path in (folder / engine).glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["stage"]] = manifest["digest"]
    return found, asked, error


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_what_asks_servers_makes_the_same_bytes_with_senders(tmp_path, policy, engine):
    """Embeddings, responses, verdicts, and those of the evaluation."""
    digests, asked, said = made(tmp_path, policy, "local")
    assert set(asked.values()) == {1}
    assert {"embed", "augment", "score", "evaluate"} <= digests.keys()
    assert made(tmp_path, policy, engine)[:2] == (digests, asked)
    assert "sender" not in said
