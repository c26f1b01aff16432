"""The report as a reader meets it: in headless Chromium, opened from disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import reporting

from bpo_data.report import words as counting
from bpo_data.stages.report import ReportConfig

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; the extra dev brings it"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
EDGE = 12
"""Pixels between the outermost points and the edge of the map."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report of hostile words."""
    return reporting.write(tmp_path_factory.mktemp("report"), ReportConfig())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


class Reader:
    """A page that is open, and all that went wrong or out."""

    def __init__(self, browser: Any, path: Path, **how: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda line: self.said.append(line.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        started = time.monotonic()
        self.page.goto(path.as_uri())
        self.page.locator("#canvas[data-drawn]").wait_for()
        self.seconds = time.monotonic() - started

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def picture(self) -> str:
        """The map's pixels, after the frame that is due."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        return str(self.page.evaluate("document.getElementById('canvas').toDataURL()"))

    def column(self, table: str, number: int) -> list[float]:
        cells = self.page.locator(f"{table} tbody tr:first-child td:nth-child({number})")
        return [float(text.split()[0].replace(",", "")) for text in cells.all_inner_texts()]


@pytest.fixture
def reader(browser, folder) -> Iterator[Reader]:
    opened = Reader(browser, folder / "report.html")
    yield opened
    opened.context.close()
    assert opened.said == []
    assert opened.asked == [(folder / "report.html").as_uri()]


def place_of(reader: Reader, row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Where on the page a pair is drawn when the whole map is shown."""
    box = reader.page.locator("#canvas").bounding_box()
    share = {}
    for axis in ("x", "y"):
        values = [one[axis] for one in rows]
        share[axis] = (row[axis] - min(values)) / (max(values) - min(values))
    return {
        "x": box["x"] + EDGE + share["x"] * (box["width"] - 2 * EDGE),
        "y": box["y"] + EDGE + (1 - share["y"]) * (box["height"] - 2 * EDGE),
    }


@pytest.fixture
def rows(folder) -> list[dict[str, Any]]:
    return pq.read_table(folder / "map.parquet").to_pylist()


def leftmost(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return min(rows, key=lambda row: row["x"])


def test_pointing_at_a_pair_shows_its_prompt_and_both_responses(reader, rows):
    pair = leftmost(rows)
    reader.page.locator("#canvas").scroll_into_view_if_needed()
    reader.page.mouse.move(**place_of(reader, pair, rows))
    shown = reader.text("#pair")
    assert pair["pair_id"] in shown
    assert f"Cluster {pair['cluster']}" in shown
    prompt = " ".join(pair["text"].split(" ")[:2])
    answers = [pair[side].split(" ")[0] for side in ("chosen", "rejected")]
    assert [term in shown for term in (prompt, *answers)] == [True] * 3
    assert shown.index(prompt) < shown.index(answers[0]) < shown.rindex(answers[1])


def test_a_click_pins_a_pair_and_filters_to_its_cluster_and_clear_lets_go(reader, rows):
    pair = leftmost(rows)
    reader.page.locator("#canvas").scroll_into_view_if_needed()
    reader.page.mouse.click(**place_of(reader, pair, rows))
    of_cluster = sum(row["cluster"] == pair["cluster"] for row in rows)
    said = f"{of_cluster} of {len(rows)} pairs match in cluster {pair['cluster']}."
    assert reader.text("#counted") == said
    assert "pinned" in reader.text("#pair")
    reader.page.mouse.move(0, 0)
    assert pair["pair_id"] in reader.text("#pair")
    pressed = reader.page.locator("button.cluster[aria-pressed=true]")
    assert pressed.all_inner_texts() == [str(pair["cluster"])]
    reader.page.locator("#clear").click()
    assert reader.text("#counted") == f"{len(rows)} pairs."


def test_a_row_of_the_cluster_table_filters_the_map_and_back(reader, rows):
    whole = reader.picture()
    button = reader.page.locator("button.cluster").first
    number = int(button.inner_text())
    button.click()
    assert f"in cluster {number}" in reader.text("#counted")
    assert reader.picture() != whole
    button.click()
    assert reader.picture() == whole


def test_the_map_works_on_the_keyboard_alone(reader, rows):
    middle = reader.page.locator("#canvas")
    middle.focus()
    reader.page.keyboard.press("ArrowRight")
    ids = [row["pair_id"] for row in rows]
    first = next(name for name in ids if name in reader.text("#pair"))
    reader.page.keyboard.press("ArrowRight")
    second = next(name for name in ids if name in reader.text("#pair"))
    across = {row["pair_id"]: row["x"] for row in rows}
    assert across[second] > across[first]
    reader.page.keyboard.press("Enter")
    assert "pinned" in reader.text("#pair")
    assert "in cluster" in reader.text("#counted")
    reader.page.keyboard.press("Escape")
    assert reader.text("#counted") == f"{len(rows)} pairs."
    outline = middle.evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid", "focus is to be seen"


def test_search_finds_the_pairs_whose_words_hold_it(reader, rows):
    for words in ("ANSWER0", "controls", "\u6570\u636e", "nowhere to be found"):
        reader.page.locator("#search").fill(words)
        found = sum(
            any(words.lower() in row[name].lower() for name in ("text", "chosen", "rejected"))
            for row in rows
        )
        assert reader.text("#counted") == f"{found} of {len(rows)} pairs match."
    reader.page.locator("#search").fill("")
    reader.page.locator("#kept").check()
    kept = sum(row["kept"] for row in rows)
    assert reader.text("#counted") == f"{kept} of {len(rows)} pairs match."


def test_each_colour_has_a_legend_and_another_picture(reader):
    pictures, legends = set(), []
    for mode in ("cluster", "usefulness", "informativeness", "margin", "kept"):
        reader.page.locator("#colour").select_option(mode)
        pictures.add(reader.picture())
        legends.append(reader.text("#legend"))
    assert len(pictures) == 5
    assert "usefulness" in legends[1]
    assert "not kept" in legends[4]
    assert legends[0].split()[: reporting.CLUSTERS] == ["0", "1", "2", "3"]


def test_wheel_and_buttons_zoom_and_drag_moves(reader):
    canvas = reader.page.locator("#canvas")
    canvas.focus()
    whole = reader.picture()
    canvas.hover(position={"x": 300, "y": 200})
    whole = reader.picture()
    reader.page.mouse.wheel(0, -400)
    closer = reader.picture()
    assert closer != whole
    reader.page.mouse.down()
    reader.page.mouse.move(*[place + 60 for place in centre(canvas)], steps=3)
    reader.page.mouse.up()
    assert reader.picture() != closer
    assert "in cluster" not in reader.text("#counted"), "a drag is no click"
    reader.page.mouse.move(0, 0)
    reader.page.locator("#whole").click()
    at_rest = reader.picture()
    reader.page.locator("#zoom-in").click()
    assert reader.picture() != at_rest
    reader.page.locator("#zoom-out").click()
    assert reader.picture() == at_rest


def centre(locator: Any) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("how", ["mouse", "Enter", "Space"])
def test_a_heading_sorts_by_mouse_and_by_key(reader, how):
    margins = reader.column("#cluster-table", 6)
    heading = reader.page.locator("#cluster-table th:nth-child(6) button")

    def press() -> None:
        heading.click() if how == "mouse" else heading.press(how)

    press()
    assert reader.column("#cluster-table", 6) == sorted(margins, reverse=True)
    press()
    assert reader.column("#cluster-table", 6) == sorted(margins)
    state = reader.page.locator("#cluster-table th:nth-child(6)").get_attribute("aria-sort")
    assert state == "ascending"


def test_examples_stay_with_their_cluster_when_sorted(reader):
    before = examples(reader)
    reader.page.locator("#cluster-table th:nth-child(1) button").click()
    assert examples(reader) == before
    assert len(before) == reporting.CLUSTERS


def examples(reader: Reader) -> dict[str, str]:
    bodies = reader.page.locator("#cluster-table tbody").all()
    return {
        body.locator("button").inner_text(): body.locator("code").first.text_content()
        for body in bodies
    }


def test_dark_is_what_the_system_prefers_until_the_button_says_otherwise(browser, folder):
    light, dark = "rgb(255, 255, 255)", "rgb(18, 22, 31)"
    for scheme, first, second in (("light", light, dark), ("dark", dark, light)):
        reader = Reader(browser, folder / "report.html", color_scheme=scheme)

        def background(reader: Reader = reader) -> str:
            style = "getComputedStyle(document.body).backgroundColor"
            return str(reader.page.evaluate(style))

        assert background() == first
        faint = reader.page.locator("button.cluster").first
        faint.click()
        before = reader.picture()
        reader.page.locator("#theme").click()
        assert background() == second
        assert reader.picture() != before, "the map follows"
        assert reader.said == []
        reader.context.close()


def test_nothing_reaches_past_the_edge_of_a_phone(browser, folder):
    reader = Reader(browser, folder / "report.html", viewport={"width": 400, "height": 800})
    for summary in reader.page.locator("summary").all():
        summary.click()
    wide = reader.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400
    assert reader.said == []
    reader.context.close()


def test_a_tap_on_a_phone_shows_the_pair_right_below_the_map_and_on_the_screen(
    browser, folder, rows
):
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    reader = Reader(browser, folder / "report.html", **phone)
    reader.page.locator("#canvas").scroll_into_view_if_needed()
    pair = leftmost(rows)
    reader.page.touchscreen.tap(**place_of(reader, pair, rows))
    assert pair["pair_id"] in reader.text("#pair")
    boxes = [reader.page.locator(name).bounding_box() for name in ("#canvas", "#pair", "#legend")]
    canvas, panel, legend = boxes
    assert 0 < panel["y"] - (canvas["y"] + canvas["height"]) < 30
    assert panel["y"] + panel["height"] < min(801, legend["y"])
    assert reader.said == []
    reader.context.close()


def test_the_first_tab_leads_to_the_map(reader):
    reader.page.keyboard.press("Tab")
    skip = reader.page.locator(".skip")
    assert skip.evaluate("one => one === document.activeElement")
    assert skip.bounding_box()["x"] >= 0
    reader.page.keyboard.press("Enter")
    assert reader.page.evaluate("document.activeElement.id") == "canvas"
    reader.page.keyboard.press("ArrowRight")
    assert "Cluster" in reader.text("#pair")


def test_on_paper_all_is_open_and_light_and_no_tool_is_left(browser, folder):
    reader = Reader(browser, folder / "report.html", color_scheme="dark")
    closed = reader.page.locator("details:not([open])").count()
    assert closed > 3
    reader.page.emulate_media(media="print", color_scheme="dark")
    reader.page.locator("details:not([open])").first.wait_for(state="detached")
    assert not reader.page.locator("nav, .tools, #pair").locator("visible=true").count()
    style = "getComputedStyle(document.body).backgroundColor"
    assert reader.page.evaluate(style) == "rgb(255, 255, 255)"
    wide = reader.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    reader.page.emulate_media(media="screen")
    reader.page.locator("details:not([open])").first.wait_for()
    assert reader.page.locator("details:not([open])").count() == closed
    reader.context.close()


def test_hostile_words_run_nothing_and_stand_there_as_words(reader, rows):
    page = reader.page
    for summary in page.locator("summary").all():
        summary.click()
    page.locator("#canvas").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp") * 5:
        page.keyboard.press(key)
    assert page.evaluate("window.owned") is None
    kinds = "[...new Set([...document.querySelectorAll('*')].map(one => one.tagName))]"
    assert not {"IMG", "IFRAME", "OBJECT", "LINK"} & set(page.evaluate(kinds))
    assert page.locator("script").count() == 2
    shown = page.locator("main").inner_text()
    for evil in reporting.EVIL[:6]:
        assert "".join(evil.split()) in "".join(shown.split())


def test_the_policy_of_the_page_stops_scripts_and_loads_that_are_not_its_own(browser, folder):
    reader = Reader(browser, folder / "report.html")
    why: list[str] = []
    reader.page.on("requestfailed", lambda request: why.append(request.failure))
    reader.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.owned = 5";
          const image = document.createElement("img");
          image.src = "https://example.invalid/a.png";
          document.body.append(script, image);
        }"""
    )
    reader.page.wait_for_timeout(100)
    assert reader.page.evaluate("window.owned") is None
    assert why == ["csp"], "the load was stopped before it left"
    assert len([line for line in reader.said if "Content Security Policy" in line]) == 2
    reader.context.close()


def painted(reader: Reader) -> str:
    """What a reader waits for: the first paint, the map, and a redraw of all its points."""
    reader.page.locator("#clear").click()
    reader.picture()
    first = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    redraw = reader.page.locator("#canvas").get_attribute("data-drawn")
    return (
        f"first paint {reader.page.evaluate(first):,.0f} ms, map after {reader.seconds:.2f} s, "
        f"redraw {redraw} ms"
    )


def worked(reader: Reader, points: int) -> None:
    """Hover, pin, search, colours and zoom on a large map."""
    reader.page.locator("#canvas").focus()
    reader.page.keyboard.press("ArrowRight")
    assert "Cluster" in reader.text("#pair")
    reader.page.keyboard.press("Enter")
    assert f"of {points:,} pairs match in cluster" in reader.text("#counted")
    reader.page.keyboard.press("Escape")
    before = reader.picture()
    reader.page.locator("#colour").select_option("margin")
    reader.page.locator("#zoom-in").click()
    assert reader.picture() != before
    reader.page.locator("#search").fill("abc")
    assert "pairs match." in reader.text("#counted")
    assert reader.said == []


def test_of_a_hundred_thousand_pairs_a_sample_stays_below_8_mb_and_is_named(
    browser, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(counting, "SAMPLED", 500)  # words take seconds and little of the page
    path = reporting.page_of(tmp_path, reporting.large(100_000, 400), ReportConfig())
    size = path.stat().st_size
    assert 4e6 < size < 8e6
    reader = Reader(browser, path)
    said = "A sample of 10,000 of 100,000 pairs, drawn by lot"
    assert said in reader.text("#clusters")
    worked(reader, 10_000)
    with capsys.disabled():
        print(f"\n10,000 of 100,000 pairs: {size / 1e6:.1f} MB, {painted(reader)}")
    reader.context.close()


@pytest.mark.slow
def test_a_hundred_thousand_points_can_be_worked_with(browser, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counting, "SAMPLED", 500)
    config = ReportConfig(points=100_000)
    path = reporting.page_of(tmp_path, reporting.large(100_000, 100), config)
    reader = Reader(browser, path)
    worked(reader, 100_000)
    with capsys.disabled():
        print(f"\n100,000 points: {path.stat().st_size / 1e6:.1f} MB, {painted(reader)}")
    reader.context.close()
