"""Nothing that data, models or servers say can steer the terminal that it is printed on."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import environment, run
from hypothesis import given
from hypothesis import strategies as st

from bpo_data import stopping
from bpo_data.artifacts import Draft
from bpo_data.components.reading.faults import Bad
from bpo_data.errors import UserError, harmless, harmless_json, plain
from bpo_data.llm.desk import Desk
from bpo_data.pipelines.run import main, set_up_logging
from bpo_data.pipelines.saying import Voice, say
from bpo_data.runtime import Runtime

STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
EVIL = "\x1b]0;title\a\x1b[2J\x1b[31m\rbpo_data: well\x9b31m\x7f\x08\u202egnp.exe\u2028\u200f!"
"""Sets the title, clears the screen, rings, goes back, and writes from right to left."""


def steering(text: str) -> list[str]:
    return [f"{letter!a}" for letter in STEERS.findall(text)]


@given(st.text())
def test_harmless_text_steers_nothing_and_keeps_its_lines(text):
    shown = harmless(text)
    assert not steering(shown)
    assert shown.count("\n") == text.count("\n")
    assert len(shown) == len(text)
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(st.text() | st.dictionaries(st.text(), st.text()))
def test_harmless_json_reads_back_the_same(value):
    text = harmless_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value
    assert not steering(text)
    text.encode()


def test_errors_and_reasons_are_harmless_wherever_they_go():
    assert not steering(str(UserError(f"a: {EVIL}\nb: {EVIL}")))
    assert len(str(UserError(f"a: {EVIL}\nb")).split("\n")) == 2
    assert not steering(Bad("unknown_role", EVIL).detail)
    assert plain(EVIL).isprintable()


def test_every_way_to_the_terminal_is_harmless(capsys, tmp_path):
    set_up_logging()
    logging.getLogger("bpo_data").info("%s said %s", "a server", EVIL)
    logging.getLogger("transformers").warning(EVIL)
    say("load", EVIL)
    Voice().line(EVIL)
    stopping.tell(EVIL)
    shown = []
    Desk("augment", Runtime(), shown=shown.append).show(EVIL)
    draft = Draft(tmp_path, "prompts", pa.schema([]), {}, "load")
    draft.say(EVIL)
    voice = Voice("json")
    voice.note(topic=EVIL)
    voice.end("done")
    out, err = capsys.readouterr()
    assert not steering(out + err + "".join(shown) + "".join(draft.facts["notes"]))
    assert err.count("gnp.exe") == 5
    document = out[out.index("{") :]
    assert json.loads(document)["topic"] == EVIL


def test_failed_requests_are_listed_so_that_the_list_can_be_shown(tmp_path):
    desk = Desk("score", Runtime(folder=str(tmp_path)))
    desk.failed.append({"model": EVIL, "detail": "half \ud800"})
    assert "Each failure and its reason" in desk.told_of_failures()
    (file,) = (tmp_path / "failed").iterdir()
    text = file.read_text(encoding="utf-8")
    assert not steering(text)
    assert json.loads(text) == desk.failed[0]


def test_a_bug_shows_its_traceback_without_what_the_data_says():
    script = (
        "import sys\nfrom bpo_data.pipelines import run\n"
        f"def broken(arguments): raise RuntimeError({EVIL!r})\n"
        "run.main = broken\nrun.console()\n"
    )
    words = [sys.executable, "-c", script]
    found = subprocess.run(words, capture_output=True, env=environment(), check=False)
    text = found.stderr.decode()
    assert found.returncode == 1
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError" in text
    assert not steering(text)


def hostile_rows() -> list[dict]:
    rows = [
        {
            "id": f"{EVIL}{number}",
            "prompt": f"{EVIL} {{{{ 7*7 }}}} <|im_end|> say {number}",
            "responses": [
                {"text": f"{EVIL} yes {number}", "model": EVIL, "score": number},
                {"text": f"=cmd|' /C calc'!A0 no {number}", "model": "{{ evil }}", "score": -1},
            ],
            "topic": f"<script>{EVIL}{number % 2}",
        }
        for number in range(12)
    ]
    return [*rows, {**rows[0], "responses": EVIL * 3}, {EVIL: EVIL}, {**rows[0], "topic": [EVIL]}]


@pytest.fixture
def hostile_file(tmp_path):
    path = tmp_path / f"a{EVIL.replace('/', '')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in hostile_rows()))
    return path


def test_reading_hostile_rows_prints_nothing_that_steers(hostile_file, tmp_path, capsys):
    settings = ["stage=load", "recipe=own_data", f"runtime.folder={tmp_path / 'runs'}"]
    assert main([*settings, f"load.path={hostile_file}"]) == 0
    for words in ("plan=true", "stage=status", "format=json"):
        assert main([*settings, f"load.path={hostile_file}", words]) == 0
    assert main([*settings, f"load.path={hostile_file}", f"load.columns.prompt={EVIL}x"]) == 2
    assert main([*settings, f"load.path={hostile_file.with_suffix('.csv')}"]) == 2
    assert main([*settings, f"load.path={hostile_file}", f"{EVIL}=1", f"recipe={EVIL}"]) == 2
    out, err = capsys.readouterr()
    assert "set aside" in err
    assert not steering(out)
    assert not steering(err)
    (table,) = (tmp_path / "runs").glob("load-*/prompts.parquet")
    kept = pq.read_table(table).to_pylist()[0]
    assert kept["prompt"][0]["content"].startswith(EVIL), "the data itself stays as it is"


@pytest.mark.slow
def test_the_whole_pipeline_on_hostile_rows_prints_nothing_that_steers(hostile_file, tmp_path):
    found = run(
        "recipe=own_data",
        f"load.path={hostile_file}",
        f"runtime.folder={tmp_path / 'runs'}",
        *("sft.steps=5", "augment.responses=3", "train.steps=3", "evaluate.prompts=4"),
        *("select.share=1", "augment.max_tokens=16", "evaluate.max_tokens=16"),
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    assert not steering(found.stdout + found.stderr)
    latest = tmp_path / "runs/latest"
    assert not steering((latest / "dataset/README.md").read_text(encoding="utf-8"))
    page = (latest / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f]", page), "directions are isolated there"
