"""The plan tells calls, tokens, money and time before any of it; the bill says what it was."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from asking import asking
from helpers import ROOT, environment, run, start
from hypothesis import given
from hypothesis import strategies as st
from test_server_pipeline import arguments, policy, reply

from bpo_data.errors import UserError
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.forecast import Asks, Seen, forecast, over_rounds, table
from bpo_data.llm.ledger import Bill
from bpo_data.llm.limits import Limits
from bpo_data.llm.prices import Price, Prices
from bpo_data.llm.stub import StubServer
from bpo_data.pipelines import config as settings
from bpo_data.pipelines import costs
from bpo_data.words import lasting

__all__ = ["policy"]  # a fixture

HERE = Endpoint("http://localhost:1/v1")
PRICED = Prices("2026-11-20", {"tiny": Price(2.0, 8.0, 0.5)})


def reckon(count: int = 10, asks: Asks | None = None, **more):
    settings = {"seen": Seen(), "limits": Limits(4), "prices": PRICED, "held": 0, **more}
    missing = [asking(number) for number in range(count)]
    return forecast("augment", "tiny", missing=missing, asks=asks or Asks([]), **settings)


def test_a_bill_of_several_rounds_stands_below_what_was_expected_of_them_all():
    rounds = [dataclasses.replace(reckon(count), round=count) for count in (1, 2)]
    assert [line.split(":")[0] for line in table(rounds) if "tiny" in line] == [
        "augment 1", "augment 2",
    ]  # fmt: skip
    (both,) = over_rounds(rounds)
    whole = reckon(3)
    for name in ("calls", "tokens_in", "tokens_out", "usd"):
        for amount in ("least", "expected", "most"):
            assert getattr(getattr(both, amount), name) == pytest.approx(
                getattr(getattr(whole, amount), name)
            )
    bill = Bill("augment", "tiny", "live", 3, 0, 30, 20, 0.5, 0, 0, 7.0)
    assert [line.split()[0] for line in table([both], [bill])][1:] == [
        "augment:", "at", "expected", "at", "it",
    ]  # fmt: skip


def test_the_most_is_what_was_reserved_and_the_least_is_below_it():
    found = reckon()
    sent = sum(len(m["content"].encode()) + 16 for m in asking(0).messages) * 10
    assert (found.most.calls, found.most.tokens_in, found.most.tokens_out) == (10, sent, 640)
    assert found.most.usd == pytest.approx((2.0 * sent + 8.0 * 640) / 1e6)
    assert found.least.tokens_out == 10, "an answer has a token"


@given(count=st.integers(0, 30), seen=st.none() | st.floats(1, 100), longer=st.sampled_from([0, 2]))
def test_least_expected_and_most_are_in_order(count, seen, longer):
    found = reckon(count, Asks([], longer=longer), seen=Seen(seen))
    for name in ("calls", "tokens_in", "tokens_out", "usd"):
        amounts = [getattr(one, name) for one in (found.least, found.expected, found.most)]
        assert amounts == sorted(amounts)


def test_answers_seen_before_say_what_to_expect():
    found = reckon(10, seen=Seen(tokens_out=12.0, seconds=2.0))
    assert found.expected.tokens_out == 120
    assert found.expected.seconds == pytest.approx(1.2 * 10 * 2.0 / 4)


def test_a_limit_a_minute_sets_the_time():
    limits = Limits(4, requests_per_minute=5)
    assert reckon(10, limits=limits).expected.seconds == 120
    assert reckon(10).expected.seconds is None, "nothing seen, nothing known"


def test_a_batch_has_its_price_and_an_unknown_price_is_unknown():
    live, batch = reckon(), reckon(asks=Asks([], mode="batch"))
    assert batch.most.usd == pytest.approx(live.most.usd / 2)
    unknown = reckon(prices=Prices())
    assert unknown.most.usd is None
    assert sum("unknown" in line for line in table([unknown])) == 3


def test_the_table_sets_what_it_was_below_what_was_expected():
    bill = Bill("augment", "tiny", "live", 12, 2, 300, 200, 0.5, 1, 0, 7.0)
    lines = list(table([reckon()], [bill]))
    names = [line[:18].strip() for line in lines]
    assert names[1:6] == ["augment: tiny", "at least", "expected", "at most", "it was"]
    assert lines[5].split() == ["it", "was", "12", "300", "200", "0.5000", "7.0", "s"]
    assert "2 of these calls brought no answer" in lines[6]
    assert "1 are counted at the most they may have cost" in lines[7]
    assert list(table([], [])) == []


def test_a_bill_without_a_forecast_is_shown_too():
    bill = Bill("evaluate", "judge", "batch", 1, 0, 3, 2, None, 0, 0, 0.1)
    lines = list(table([], [bill]))
    assert lines[1] == "evaluate: judge"
    assert lines[2].split() == ["it", "was", "(batch)", "1", "3", "2", "unknown", "0.1", "s"]


def test_times_read_as_people_say_them():
    assert [lasting(x) for x in (0.42, 12.3, 700, 12600)] == ["0.4 s", "12 s", "12 min", "3.5 h"]


def prices(folder: Path) -> str:
    path = folder / "prices.yaml"
    path.write_text(
        "date: 2026-11-20\nmodels:\n  writer: {prompt: 1, completion: 2}\n"
        "  judge: {prompt: 3, completion: 4}\n"
    )
    return f"budget.prices={path}"


def calls(output: str, stage: str) -> list[int]:
    """Calls at least, expected, at most (and as it was) of a stage, from the printed table."""
    block = re.search(rf"^{stage}: .*\n((?:  .*\n?)+)", output, re.MULTILINE)
    assert block, output
    rows = [line for line in block[1].splitlines() if re.match(r"  (at|expected|it was)", line)]
    return [int(re.search(r"\s([\d,]+)\s", row[12:])[1].replace(",", "")) for row in rows]


def test_plan_tells_before_and_the_run_tells_after(tmp_path, policy):
    with StubServer(reply=reply) as server:
        given = [*arguments(tmp_path, policy, server.url), prices(tmp_path)]
        blind = run(*given, "plan=true")
        assert blind.returncode == 0, blind.stderr
        assert "run stage=select first" in blind.stdout
        assert run(*arguments(tmp_path, policy, server.url, "select")).returncode == 0
        plan = run(*given, "plan=true")
        assert server.payloads == [], "a plan sends nothing"
        assert not (tmp_path / "runs" / "requests.sqlite").exists()
        assert calls(plan.stdout, "augment") == [40, 40, 80]
        assert calls(plan.stdout, "score") == [40, 40, 40]
        assert "responses are not made yet" in plan.stdout
        made = run(*given)
        assert made.returncode == 0, made.stderr
        assert calls(made.stdout, "augment") == [40, 40, 80, 40]
        assert calls(made.stdout, "score")[-1] == 40
        assert re.search(r"account all: 80 requests so far, 0\.\d+ US dollars", made.stdout)
        more = run(*given, "augment.responses=5", "plan=true")
        assert "augment: writer; 40 more are in the store" in more.stdout
        assert calls(more.stdout, "augment") == [10, 10, 20]
        assert "unknown" not in more.stdout


def test_a_budget_stops_the_command_and_the_next_goes_on(tmp_path, policy):
    with StubServer(reply=reply) as server:
        given = [*arguments(tmp_path, policy, server.url, "score"), prices(tmp_path)]
        stopped = run(*given, "budget.requests=50")
        assert stopped.returncode == 2
        assert "score: the budget is used up (budget.requests=50" in stopped.stderr
        assert "30 of 40 replies are missing" in stopped.stderr
        assert calls(stopped.stdout, "score")[-1] == 10, "the bill is told all the same"
        assert len(server.payloads) == 50
        finished = run(*given)
        assert finished.returncode == 0, finished.stderr
        assert len(server.payloads) == 80


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("budget.usd=5", "budget.usd needs prices"),
        ("budget.usd=-1", "budget.usd=-1.0: give 0 or more"),
        ("budget.usd=much", "budget.usd=much: give a number"),
        ("budget.requests=2.5", "budget.requests=2.5: give a whole number"),
        ("budget.account=", "budget.account is empty"),
        ("budget.prices=nowhere.yaml", "budget.prices=nowhere.yaml cannot be read"),
        ("augment.retry=[ok]", "augment.retry has ok"),
        ("augment.retry=empty", "augment.retry=empty: give a list, such as [one,two]"),
        ("augment.mode=later", "augment.mode=later: choose live, batch"),
        ("augment.longer=0.5", "augment.longer=0.5: give a factor above 1"),
        ("runtime.requests_per_minute=-1", "runtime.requests_per_minute=-1: use 0"),
        ("runtime.servers={http://x/v1: {rpm: 3}}", "runtime.servers[http://x/v1] has rpm"),
        ("runtime.servers={http://x/v1: {concurrency: 0}}", "concurrency=0.0: give a number"),
    ],
)
def test_settings_that_make_no_sense_are_named_before_any_work(setting, said):
    result = run("stage=load", setting)
    assert result.returncode == 2
    assert said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_a_budget_for_a_model_without_a_price_is_refused(tmp_path, policy):
    path = tmp_path / "prices.yaml"
    path.write_text("date: 2026-11-20\nmodels:\n  other: {prompt: 1, completion: 2}\n")
    with StubServer(reply=reply) as server:
        given = arguments(tmp_path, policy, server.url, "augment")
        result = run(*given, f"budget.prices={path}", "budget.usd=1")
        assert result.returncode == 2
        for model in ("writer", "judge"):
            assert f"budget.prices={path} has no price of {model}" in result.stderr
        assert (result.stdout, server.payloads) == ("", []), "nothing is made before"


@pytest.mark.slow
def test_how_requests_are_sent_changes_no_key(tmp_path, policy):
    with StubServer(reply=reply) as server:
        given = arguments(tmp_path, policy, server.url, "augment")
        assert run(*given).returncode == 0
        again = run(*given, "augment.max_failed=0.5", "runtime.requests_per_minute=900")
        verbs = {line.split()[0]: line.split()[1] for line in again.stdout.splitlines()}
        assert verbs["augment"] == "kept"
        manifest = json.loads(next((tmp_path / "runs").glob("augment-*/manifest.json")).read_text())
        assert {"mode", "max_failed"}.isdisjoint(manifest["settings"])
        assert manifest["facts"]["requests"]["states"] == {"ok": 40}


def test_a_judge_from_outside_that_does_not_say_what_it_asks_can_be_planned(tmp_path, policy):
    (tmp_path / "my_judges.py").write_text(
        "from bpo_data.components.judging import Offline, Verdict, sole\n"
        "class Length:\n"
        "    name, judges_new, scale = 'length', True, None\n"
        "    def ready(self): pass\n"
        "    def __call__(self, items, known, desk):\n"
        "        return sole(self.name, [Verdict(float(len(i.text)), 'ok', '') for i in items])\n"
    )
    with StubServer(reply=reply) as server:
        given = [
            one
            for one in arguments(tmp_path, policy, server.url, "score")
            if not one.startswith("score.")
        ]
        given.append("score.kind=my_judges:Length")
        where = {**environment(), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        for more in (["plan=true"], []):
            with start(*given, *more, environment=where) as process:
                _, error = process.communicate(timeout=120)
                assert process.returncode == 0, error


def test_a_server_that_is_not_there_costs_nothing(tmp_path, policy):
    with StubServer(reply=reply) as server:
        pass
    given = arguments(tmp_path, policy, server.url, "augment")
    result = run(*given, prices(tmp_path), "budget.usd=0.001")
    assert result.returncode == 2
    assert "does not answer" in result.stderr
    assert "used up" not in result.stderr
    assert "0.0000 US dollars" in result.stdout


def test_a_plan_says_which_cap_may_stop_the_run(tmp_path, policy):
    with StubServer(reply=reply) as server:
        given = [*arguments(tmp_path, policy, server.url, "score"), prices(tmp_path)]
        assert run(*arguments(tmp_path, policy, server.url, "select")).returncode == 0
        plan = run(*given, "plan=true", "budget.usd=0.0001", "budget.requests=50")
    assert "budget.usd=0.0001 may stop the run" in plan.stdout
    assert "budget.requests=50 may stop the run" in plan.stdout
    assert plan.stdout.count("expected to come to 80.") == 1


@pytest.mark.slow
def test_a_judges_empty_replies_are_asked_for_again(tmp_path, policy):
    from bpo_data.llm.stub import message

    with StubServer(reply=reply) as server:
        given = arguments(tmp_path, policy, server.url, "score")
        assert run(*arguments(tmp_path, policy, server.url, "augment")).returncode == 0
        server.faults += [message("")] * 5
        first = run(*given)
        assert "5 of 40 responses have no points" in first.stderr
        again = run(*given, "score.retry=[empty]")
        assert again.returncode == 0, again.stderr
        assert "have no points" not in again.stderr
        assert len(server.payloads) == 40 + 40 + 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["score.kind=panel"], "score.options.judges is missing: score.kind=panel has to be told"),
        (["score.kind=reward_model"], "score.options.model is missing"),
        (
            ["score.kind=verifier", "score.options.function=math:sqrt"],
            "score.options.function=math:sqrt cannot be called with (prompt, response",
        ),
    ],
)
def test_what_a_judge_needs_is_said(settings, said):
    result = run("stage=load", *settings)
    assert result.returncode == 2
    assert said in result.stderr, result.stderr


def test_a_judge_of_evaluates_own_is_reckoned_and_needs_its_price(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("date: 2026-11-20\nmodels:\n  other: {prompt: 1, completion: 1}\n")
    words = [
        "evaluate.kind=rubric", "evaluate.options.model=marker", "budget.usd=1",
        f"budget.prices={prices}",
    ]  # fmt: skip
    with pytest.raises(UserError, match="has no price of marker"):
        settings.read(words)
    config = settings.read(words[:2]).config
    assert costs.asks("evaluate", config)
    assert not costs.asks("score", config)
