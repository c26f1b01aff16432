"""Ages by two clocks: a time of day that jumps makes nothing look older than it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_data import ages
from bpo_data.artifacts import Artifact
from bpo_data.pipelines.clean import DAY, removable
from bpo_data.shelf import Shelf
from bpo_data.work import Work

YEAR = 365 * DAY


@given(jump=st.floats(-10 * YEAR, 10 * YEAR))
def test_what_was_noted_just_now_is_new_wherever_the_clock_jumps(jump: float) -> None:
    then, noted = time.time(), ages.stamp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: then + jump)
        assert 0 <= ages.age(then, f"a command\n{noted}\n") < 60


@given(seconds=st.floats(0, 10 * YEAR))
def test_without_a_note_of_this_start_the_time_of_day_counts(seconds: float) -> None:
    other = "00000000-0000-0000-0000-000000000000 5"
    for noted in ("", "process 12 on a-host", other):
        assert ages.age(time.time() - seconds, noted) == pytest.approx(seconds, abs=60)
    assert ages.age(time.time() + seconds) == pytest.approx(0, abs=60)


def test_a_note_ages_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = ages.stamp()
    true = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: true(clock) + 40 * DAY)
    assert ages.age(time.time() - YEAR, noted) == pytest.approx(40 * DAY, abs=60)
    assert ages.age(time.time() - DAY, noted) == pytest.approx(DAY, abs=60)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A finished artifact that was used, and one in the making that was left."""
    shelf = Shelf(tmp_path)
    for kind in ("load", "embed"):
        work = Work(kind, 1, {}, {})
        with shelf.held(work, waiting=print):
            end = "" if kind == "load" else ".partial"
            (tmp_path / f"{work.name}{end}").mkdir()
        if kind == "load":
            (tmp_path / work.name / "manifest.json").write_text("{}")
            lock = shelf.use(Artifact(tmp_path / work.name, {}), "stage=load")
            assert lock is not None
            lock.close()
    return shelf


def offered(shelf: Shelf, days: float) -> set[str]:
    return {one.name.partition("-")[0] for one in removable(shelf, days)}


@pytest.mark.parametrize("years", [-1, 0, 1])
def test_a_clock_a_year_off_offers_nothing_for_removal(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + years * YEAR)
    assert offered(shelf, days=30) == set()
    assert offered(shelf, days=0) == {"load", "embed"}, "all, though it is of the future"


def test_what_nobody_used_for_a_month_is_offered_after_a_start_of_the_machine(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * DAY)
    monkeypatch.setattr(ages, "stamp", lambda: "00000000-0000-0000-0000-000000000000 5")
    assert offered(shelf, days=30) == {"load", "embed"}
