"""How many requests a second a client brings to a server of fixed latency, beside its peers.

  python -m tests.benchmarks.client                             # 40 at once: 200 a second
  python -m tests.benchmarks.client --at-once 8,16,40 --peers /path/to/their/bin/python
  python -m tests.benchmarks.client --only ours,ours_processes,ours_ray --at-once 200
  python -m tests.benchmarks.client --replay 100000             # all of it from the store

The server runs in a process of its own and takes ``--latency`` seconds for an answer of 256 tokens
to a prompt of 1 KB. With C at once no client can pass C / latency requests a second; the ratio to
that is shown, as median, least and largest over rounds in which all contenders take turns. Time
goes from the server's first request to its last answer, so that nobody's start-up counts; CPU
is that of the client's process from its first request on, its children's included, and ``own`` of
that what ours takes without them: with senders, of an engine's processes or of Ray (whose
processes are nobody's children), it is what bounds the whole.

Peers are no dependencies. Install them in an environment of their own, and name its Python with
``--peers``: pip install bespokelabs-curator distilabel. What is missing is skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.client_peers import PEERS, TOKENS, prompt, report, used
from tests.benchmarks.fixed_latency import serve
from tests.benchmarks.machine import processor_name

ROOT = Path(__file__).parents[2]


def ours(url: str, at_once: int, count: int, engine: str = "local") -> None:
    """``complete`` with a fresh store on disk, as a stage calls it; two senders of an engine."""
    from bpo_data.engines import engine_of
    from bpo_data.engines.connecting import connected
    from bpo_data.llm.client import Endpoint, Limits, Request, complete
    from bpo_data.llm.store import RequestStore
    from bpo_data.runtime import Runtime

    runtime = Runtime(engine=engine, processes=0 if engine == "local" else 2, device="cpu")

    def request(number: int) -> tuple[Request, int]:
        said = [{"role": "user", "content": prompt(number)}]
        return Request(said, "tiny", 1.0, 1.0, TOKENS, seed=number), 0

    with tempfile.TemporaryDirectory() as folder, RequestStore(f"{folder}/r.sqlite") as store:
        how = {"endpoint": Endpoint(url), "store": store, "limits": Limits(at_once)}
        complete([request(-1)], **how)
        requests = [request(number) for number in range(count)]
        if engine == "ray":
            connected(runtime)
        before, own = used(), time.process_time()
        replies = complete(requests, **how, lines=engine_of(runtime).lines)
        report(before, own=time.process_time() - own)
        assert all(reply.state == "ok" for reply in replies)


def ours_without_aiohttp(url: str, at_once: int, count: int) -> None:
    """The same where aiohttp is not installed."""
    import importlib.util

    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: (
        None if name == "aiohttp" else find(name, package)
    )
    ours(url, at_once, count)


def bare(url: str, at_once: int, count: int, **more: Any) -> None:
    """openai's client behind a semaphore: no store, no account, no limits, answers in memory."""
    import openai

    async def ask_all() -> None:
        places = asyncio.Semaphore(at_once)

        async def ask(number: int) -> str | None:
            async with places:
                answer = await client.chat.completions.create(
                    messages=[{"role": "user", "content": prompt(number)}],
                    model="tiny",
                    max_tokens=TOKENS,
                    seed=number,
                )
            return answer.choices[0].message.content

        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, **more
        ) as client:
            await ask(-1)
            before = used()
            answers = await asyncio.gather(*(ask(number) for number in range(count)))
            report(before)
        assert all(answers)

    asyncio.run(ask_all())


def bare_aiohttp(url: str, at_once: int, count: int) -> None:
    import openai

    bare(url, at_once, count, http_client=openai.DefaultAioHttpClient())


def floor(url: str, at_once: int, count: int) -> None:
    """Nothing but bytes sent and received: what is lost here no client could gain."""
    import aiohttp

    async def ask_all() -> None:
        places = asyncio.Semaphore(at_once)
        connections = aiohttp.TCPConnector(limit=0)

        async def ask(number: int) -> None:
            said = [{"role": "user", "content": prompt(number)}]
            async with (
                places,
                session.post(
                    f"{url}/chat/completions", json={"messages": said, "model": "tiny"}
                ) as answer,
            ):
                await answer.read()

        async with aiohttp.ClientSession(connector=connections) as session:
            await ask(-1)
            before = used()
            await asyncio.gather(*(ask(number) for number in range(count)))
            report(before)

    asyncio.run(ask_all())


OWN: dict[str, Callable[[str, int, int], None]] = {
    "ours": ours,
    "ours_processes": partial(ours, engine="processes"),
    "ours_ray": partial(ours, engine="ray"),
    "ours_no_aiohttp": ours_without_aiohttp,
    "floor": floor,
    "openai": bare,
    "openai_aiohttp": bare_aiohttp,
}


@contextmanager
def serving(latency: float) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The server's address, and a function that asks for its figures."""
    command = [sys.executable, "-m", "tests.benchmarks.client", "--serve", str(latency)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def figures() -> dict[str, float]:
            asked.write("\n")
            asked.flush()
            found: dict[str, float] = json.loads(told.readline())
            return found

        yield told.readline().strip(), figures
        asked.close()


def contend(name: str, url: str, at_once: int, count: int, peers: str) -> dict[str, float] | str:
    """Run a contender in a process of its own; its figures, or what went wrong."""
    if name in OWN:
        command = [sys.executable, "-m", "tests.benchmarks.client"]
    else:
        command = [peers, str(Path(__file__).with_name("client_peers.py"))]
    done = subprocess.run(
        [*command, "--contender", name, url, str(at_once), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT) if name in OWN else "", "NO_PROXY": "127.0.0.1"},
        cwd=ROOT if name in OWN else tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1][:150]
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def compare(asked: argparse.Namespace) -> None:
    names = asked.only or [*OWN, *(PEERS if asked.peers else ())]
    load = f"load {os.getloadavg()[0]:.2f} at the start"
    print(f"{processor_name()}, {os.cpu_count()} cores, {load}; latency {asked.latency} s")
    print(f"{'at once':>7}  {'contender':16}{'ratio':>7}{'[least, largest]':>18}", end="")
    print(f"{'a second':>10}{'CPU ms':>8}{'own':>8}{'at once':>9}")
    with serving(asked.latency) as (url, figures):
        for at_once in asked.at_once:
            count = round(at_once / asked.latency * asked.seconds)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for name in names * asked.rounds:
                told = contend(name, url, at_once, count, asked.peers)
                seen = figures()
                if isinstance(told, str):
                    print(f"{name}: failed: {told}", file=sys.stderr, flush=True)
                    continue
                found[name].append(told | seen | {"load": os.getloadavg()[0]})
                print(at_once, name, found[name][-1], file=sys.stderr, flush=True)
            for name in names:
                print_row(at_once, name, found[name], at_once / asked.latency)


def print_row(at_once: int, name: str, rounds: list[dict[str, float]], most: float) -> None:
    if not rounds:
        print(f"{at_once:7}  {name:16} did not run")
        return
    speeds = [row["requests"] / row["seconds"] for row in rounds]
    ratios = [speed / most for speed in speeds]
    cpu = statistics.median(1000 * row["cpu"] / row["requests"] for row in rounds)
    own = [1000 * row["own"] / row["requests"] for row in rounds if "own" in row]
    shown = f"{statistics.median(own):8.2f}" if own else f"{'':8}"
    span = f"[{min(ratios):.3f}, {max(ratios):.3f}]"
    middle = statistics.median(ratios)
    seen = max(row["most_at_once"] for row in rounds)
    print(
        f"{at_once:7}  {name:16}{middle:7.3f}{span:>18}{statistics.median(speeds):10.1f}"
        f"{cpu:8.2f}{shown}{seen:9.0f}",
        flush=True,
    )


def replay(count: int) -> None:
    """``complete`` over requests whose answers are all held, in a process that just began."""
    from bpo_data.llm.client import Endpoint, Limits, Reply, Request, complete
    from bpo_data.llm.requests import keyed
    from bpo_data.llm.store import RequestStore

    endpoint = Endpoint("http://127.0.0.1:9/v1")  # nobody is there
    requests = []
    for number in range(count):
        said = [{"role": "user", "content": prompt(number)}]
        request = Request(said, "tiny", 1.0, 1.0, TOKENS, seed=number)
        requests.append((request, 0))
    answer = Reply("ok", "word " * TOKENS, "stop", 200, TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.sqlite"
        with RequestStore(path) as store, store.transaction():
            for key, _, text in keyed(requests, endpoint):
                store.put(key, text, answer)
        begin, spent = time.perf_counter(), time.process_time()
        path.read_bytes()
        reading = time.perf_counter() - begin
        begin, spent = time.perf_counter(), time.process_time()
        with RequestStore(path) as store:
            replies = complete(requests, endpoint=endpoint, store=store, limits=Limits(1))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - spent
        assert replies == [answer] * count
        megabytes = path.stat().st_size / 1e6
    print(
        f"{count:,} held requests: {seconds:.2f} s ({cpu:.2f} s CPU) to open and replay; "
        f"reading the file's {megabytes:,.0f} MB takes {reading:.2f} s"
    )


def parse() -> argparse.Namespace:
    headline, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=headline, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers: dict[str, Any] = {"type": lambda text: [int(word) for word in text.split(",")]}
    parser.add_argument("--at-once", default=[40], **numbers, help="requests under way (40)")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds for an answer (0.2)")
    parser.add_argument("--seconds", type=float, default=20, help="of one contender's turn (20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), help="contenders, by comma")
    parser.add_argument("--peers", default="", help="the Python of an environment with the peers")
    parser.add_argument("--replay", type=int, metavar="REQUESTS", help="time the store instead")
    parser.add_argument("--serve", type=float, metavar="LATENCY", help=argparse.SUPPRESS)
    parser.add_argument("--contender", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    if asked.serve is not None:
        serve(asked.serve, TOKENS)
    elif asked.contender:
        name, url, at_once, count = asked.contender
        OWN[name](url, int(at_once), int(count))
    elif asked.replay:
        replay(asked.replay)
    else:
        compare(asked)


if __name__ == "__main__":
    main()
