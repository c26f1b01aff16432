"""Time and memory of the stages that hold a whole table, row by row, as tables grow.

  python -m tests.benchmarks.scale --json scale.json --figure data_cards/scale.svg
  python -m tests.benchmarks.scale --only cluster,allocate --most 100k

Each case is one stage, run as the pipeline runs it, on artifacts that lie in a runs folder. It has
a process of its own, which first runs the same stage on a few rows, so that imports do not count:

  CPU      processor time a row, user and system: what other work on the machine changes least
  wall     the same by the clock
  memory   most resident memory while the stage ran, less that of the process before it, a row
  peak     most resident memory of the process, all told

Sizes are prompts of shared/data/prompts_50k.parquet (load, embed, select), made-up rated responses,
eight a prompt, of 120 words (load_rated, score, score_given, pair, export), and made-up pairs with
1,024 float16 numbers a response and as many pairs as responses (cluster, allocate). ``score``
plays a rubric judge's replies back from the request store. The pairs of the largest size take
2.2 GB of disk; what is made for a size is removed when its cases are done. With ``--json`` what an
earlier call measured stays in the file, and tables and figure show it too; ``--only ''`` measures
nothing and shows that alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import scale_figure, scale_plan
from tests.benchmarks.machine import processor_name

ROOT = Path(__file__).parents[2]
SAMPLE = 50_000
"""Pairs that clusters are fitted on, where they are not fitted on all."""


@dataclass(frozen=True)
class Case:
    """A stage under some settings, at several sizes."""

    stage: str
    world: str
    """A name in ``scale_worlds.WORLDS``."""
    rows: tuple[int, ...]
    words: str
    """What the table says of it."""
    settings: tuple[str, ...] = ()


PROMPTS, RATED = (1_000, 10_000, 50_000), (10_000, 50_000, 200_000)
PAIRS = (10_000, 100_000, 300_000, 1_000_000)
FITTED = f"cluster.fit_on={SAMPLE}"
CASES = {
    "load": Case("load", "prompts", PROMPTS, "prompts of a Parquet file"),
    "embed": Case("embed", "prompts", PROMPTS, "TF-IDF and SVD, 64 numbers"),
    "select": Case("select", "prompts", PROMPTS, "half of them, a cluster for two kept"),
    "select_500": Case(
        "select", "prompts", PROMPTS, "500 of them, 250 clusters", ("select.keep=500",)
    ),
    "load_rated": Case("load", "responses", RATED, "rated responses of a Parquet file"),
    "score": Case("score", "responses", RATED, "a rubric judge, all replies in the store"),
    "score_given": Case(
        "score", "responses", RATED, "the source's own scores", ("score.kind=given",)
    ),
    "pair": Case("pair", "responses", RATED, "by lot, 4 a prompt"),
    "export": Case("export", "responses", RATED, "with TRL's balance in tokens"),
    "cluster": Case(
        "cluster", "pairs", PAIRS, f"fitted on {SAMPLE:,}, the rest assigned", (FITTED,)
    ),
    "cluster_all": Case("cluster", "pairs", PAIRS[:3], "fitted on all"),
    "allocate": Case("allocate", "pairs", PAIRS, "`margin`, half of the pairs", (FITTED,)),
    "allocate_center": Case(
        "allocate", "pairs", PAIRS, "`center`, half of the pairs", (FITTED, "allocate.kind=center")
    ),
}
QUICK = {"prompts": (600, 1_200), "responses": (400, 1_600), "pairs": (400, 1_600)}
"""Sizes of ``--quick``."""


def main(arguments: Sequence[str]) -> int:
    asked = read_options(arguments)
    if asked.child:
        name, rows, folder, purpose = asked.child
        print(json.dumps(in_child(name, int(rows), Path(folder), purpose)))
        return 0
    measured = earlier(asked.json)
    measured["machine"] = f"{processor_name()}, {os.cpu_count()} cores, one thread"
    for world in dict.fromkeys(case.world for case in CASES.values()):
        for row in of_world(world, asked):
            print(scale_figure.line(row), file=sys.stderr, flush=True)
            measured["rows"] = merged(measured["rows"], row)
            if asked.json:
                Path(asked.json).write_text(json.dumps(measured, indent=1), encoding="utf-8")
    table = scale_figure.table(measured["rows"], CASES)
    print(table)
    if asked.figure:
        scale_figure.draw(measured["rows"], CASES, Path(asked.figure))
    lacking = CASES.keys() - {row["case"] for row in measured["rows"]}
    if asked.into and lacking:
        print(f"{asked.into} stays: {', '.join(sorted(lacking))} lack figures", file=sys.stderr)
    elif asked.into:
        put_into(Path(asked.into), "scale", table)
        put_into(Path(asked.into), "plan", scale_plan.table(measured["rows"]))
    return 0


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    from tests.benchmarks.scale_worlds import PROMPTS, sizes

    headline, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scale",
        description=headline,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(CASES), help="cases, by comma"
    )
    parser.add_argument("--quick", action="store_true", help="sizes that take a minute in all")
    parser.add_argument(
        "--most", type=lambda text: next(sizes(text)), default=10**9, help="largest size, as 100k"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="figures are kept there")
    parser.add_argument("--figure", default="", metavar="FILE", help="an .svg or .png of them")
    parser.add_argument("--into", default="", metavar="FILE", help="a page that has the tables")
    parser.add_argument("--folder", default="", help="where runs folders are made (a new one)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.only if name and name not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not PROMPTS.is_file() and not asked.child:
        print(f"left out: load, embed, select want {PROMPTS}", file=sys.stderr)
        asked.only = [name for name in asked.only if name and CASES[name].world != "prompts"]
    return asked


def of_world(world: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures of all cases on the rows of one kind, the smallest sizes first."""
    cases = {name: case for name, case in CASES.items() if case.world == world}
    cases = {name: case for name, case in cases.items() if name in asked.only}
    every = {rows for case in cases.values() for rows in case.rows}
    for rows in sorted(QUICK[world] if asked.quick else every):
        here = [name for name, case in cases.items() if asked.quick or rows in case.rows]
        if rows > asked.most or not here:
            continue
        with tempfile.TemporaryDirectory(prefix="scale-", dir=asked.folder or None) as folder:
            for name in here:
                child(name, rows, folder, "make")
                yield child(name, rows, folder, "measure")


def child(name: str, rows: int, folder: str, purpose: str) -> dict[str, Any]:
    """What a process of its own has to say."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--child"]
    done = subprocess.run(
        [*command, name, str(rows), folder, purpose],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} of {rows:,} rows: {purpose} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def in_child(name: str, rows: int, folder: Path, purpose: str) -> dict[str, Any]:
    """Make what a case needs, or measure it."""
    from tests.benchmarks.scale_worlds import FEW, WORLDS, put_in_place, store_replies

    case = CASES[name]

    def placed(where: str, count: int, more: Sequence[str]) -> Any:
        return put_in_place(folder / where, WORLDS[case.world], case.stage, count, more)

    places = (("warm", FEW, ()), ("whole", rows, case.settings))
    if purpose == "make":
        for place in places:
            run = placed(*place)
            if case.stage == "score":
                store_replies(run)
        return {}
    warm, whole = (placed(*place) for place in places)
    shutil.rmtree(warm.shelf.folder / warm.work(warm.steps[-1]).name, ignore_errors=True)
    warm.bring(warm.steps[-1])
    return {"case": name, "rows": rows, **measured(whole)}


def measured(run: Any) -> dict[str, Any]:
    """Figures of the last step of a run, which has all that it needs."""
    gc.collect()
    before, began, spent = resident("VmRSS"), time.perf_counter(), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    run.bring(run.steps[-1])
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    artifact, store = run.made[run.steps[-1].key], run.runtime.store_file()
    assert [row["verb"] for row in run.voice.answer["stages"]][-1] == "made"
    return {
        "wall": round(wall, 3),
        "cpu": round(cpu, 3),
        "memory": max(0, resident("VmHWM") - before),
        "peak": resident("VmHWM"),
        "bytes": artifact.size,
        "store": store.stat().st_size if store.exists() else 0,
        "load": round(os.getloadavg()[0], 2),
        "digest": artifact.digest[:12],
    }


def resident(name: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def earlier(path: str) -> dict[str, Any]:
    """What a file of an earlier call holds."""
    if path and Path(path).exists():
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found
    return {"rows": []}


def merged(old: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Old rows, but for the one measured anew, and the new one in the order of the cases."""
    rows = {(row["case"], row["rows"]): row for row in [*old, new]}
    order = list(CASES)
    return sorted(rows.values(), key=lambda row: (order.index(row["case"]), row["rows"]))


def put_into(path: Path, name: str, table: str) -> None:
    """Replace what stands between two marks of a page. Raises ValueError where it has none."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{path} lacks the marks {begin.strip()} and {end.strip()}")
    path.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
