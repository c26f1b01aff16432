"""The benchmark of scale, at sizes at which it says nothing: so that it cannot rot."""

from __future__ import annotations

from mmap import mmap
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.benchmarks import scale, scale_figure, scale_plan
from tests.benchmarks.scale_worlds import FEW


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Figures of a case of each world that needs no data from outside."""
    found = []
    for name, count in (("export", 88), ("allocate", 1_200)):
        folder = tmp_path_factory.mktemp(name)
        scale.in_child(name, count, folder, "make")
        found.append(scale.in_child(name, count, folder, "measure"))
        (made,) = (folder / "whole" / "runs").glob("augment-*/responses.parquet")
        found[-1]["responses"] = pq.ParquetFile(made).metadata.num_rows
        parts = (folder / "whole" / "runs").glob("gradients-*/gradients-*.parquet")
        found[-1]["gradients"] = sum(pq.ParquetFile(part).metadata.num_rows for part in parts)
    return found


def test_a_case_has_the_rows_it_says(rows):
    assert [(row["rows"], row["responses"], row["gradients"]) for row in rows] == [
        (88, 88, 88),
        (1_200, FEW, 1_200),
    ]


def test_memory_held_for_a_moment_is_measured(tmp_path):
    megabyte = 2**20

    def bring(step):
        with mmap(-1, 64 * megabyte) as held:  # what the C library has kept would be no growth
            for start in range(0, len(held), megabyte):
                held[start : start + megabyte] = b"x" * megabyte
        run.made["table"] = SimpleNamespace(size=1, digest="0" * 64)

    run = SimpleNamespace(
        steps=[SimpleNamespace(key="table")],
        made={},
        bring=bring,
        voice=SimpleNamespace(answer={"stages": [{"verb": "made"}]}),
        runtime=SimpleNamespace(store_file=lambda: tmp_path / "none"),
    )
    found = scale.measured(run)
    assert 60 * megabyte < found["memory"] < 80 * megabyte
    assert found["peak"] > found["memory"]


def test_what_is_measured_stands_in_the_page_and_in_the_figure(rows, tmp_path):
    page, figure = tmp_path / "page.md", tmp_path / "figure.svg"
    marks = "<!-- {0} -->\nold\n<!-- end of {0} -->\n"
    page.write_text(f"before\n{marks.format('scale')}between\n{marks.format('plan')}after\n")
    scale.put_into(page, "scale", scale_figure.table(rows, scale.CASES))
    scale.put_into(page, "plan", scale_plan.table(rows))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n<!-- scale -->\n| case |")
    assert text.endswith("\n<!-- end of plan -->\nafter\n")
    assert f"| 88 | {rows[0]['wall']:,.1f} | {rows[0]['cpu']:,.1f} |" in text
    scale_figure.draw(rows, scale.CASES, figure)
    assert "export" in figure.read_text()
    with pytest.raises(ValueError, match="lacks the marks"):
        scale.put_into(figure, "scale", "")


def test_the_plan_goes_on_along_the_line_through_the_two_largest_sizes():
    found = [
        {"case": "pair", "rows": rows, "cpu": cpu, "memory": memory, "bytes": rows, "store": 7}
        for rows, cpu, memory in ((8_000, 3.8, 2.6e6), (10, 100.0, 9e9), (4_000, 2.0, 1.4e6))
    ]
    line = next(line for line in scale_plan.lines(found) if line.startswith("| `pair`"))
    # 0.45 ms and 300 bytes a row more: 80 million take 10 hours and 24 GB, a 24th of them 1 GB.
    assert line == "| `pair` | 80 | 10 | 24 | 1.0 | < 0.1 |  |"
