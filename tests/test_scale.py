"""The benchmark of scale, at sizes at which it says nothing: so that it cannot rot."""

from __future__ import annotations

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
    for row in rows:
        assert row["peak"] > row["memory"] > 0 < row["cpu"] <= 2 * row["wall"]


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


def test_the_plan_multiplies_what_the_largest_size_took():
    figures = {"case": "pair", "cpu": 3.6, "memory": 2_400_000, "bytes": 500, "store": 7}
    small = figures | {"rows": 10, "cpu": 100.0}
    line = next(
        line
        for line in scale_plan.lines([figures | {"rows": 8_000}, small])
        if line.startswith("| `pair`")
    )
    # 80 million responses are 10,000 times as many: 10 hours, 24 GB, 1 GB in each of 24 slices.
    assert line == "| `pair` | 80 | 10 | 24 | 1.0 | < 0.1 |  |"
