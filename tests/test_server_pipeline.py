"""The pipeline against an OpenAI-compatible server on this machine, prompts alone to begin with."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import run

from bpo_data.llm.store import RequestStore
from bpo_data.llm.stub import StubServer

QUESTIONS = 14


def reply(payload: dict) -> str:
    """An answer that depends on the seed, or a verdict that depends on the answer."""
    asked = payload["messages"][-1]["content"]
    if "to grade" in asked:
        score = 1 + int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 10
        return json.dumps({"reason": "a coin said so", "score": score})
    return f"answer {payload['seed']} to {asked}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    from bpo_data.policy import save_policy
    from bpo_data.scratch import Scratch, make_policy

    folder = tmp_path_factory.mktemp("policy")
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer 17"}]
    save_policy(make_policy([talk], Scratch(width=16, layers=1, heads=2, hidden=16), 0), folder)
    return folder


def arguments(folder: Path, policy: Path, url: str, stage: str = "export") -> list[str]:
    source = folder / "prompts.jsonl"
    if not source.exists():
        source.write_text(
            "".join(json.dumps({"prompt": f"question {n}?"}) + "\n" for n in range(QUESTIONS))
        )
    return [
        f"stage={stage}", "recipe=own_data", f"load.path={source}", f"runtime.folder={folder}/runs",
        "load.test_share=0.3", "select.share=1", "sft.kind=given", f"sft.model={policy}",
        "augment.client=openai", "augment.model=writer", f"augment.base_url={url}",
        "augment.responses=4", "score.kind=rubric", "score.options.model=judge",
        f"score.options.base_url={url}", "gradients.rank=2", "gradients.dim=16",
    ]  # fmt: skip


def asked(server: StubServer) -> Counter[str]:
    return Counter(payload["model"] for payload in server.payloads)


def test_prompts_alone_become_a_dataset_and_no_reply_is_paid_for_twice(tmp_path, policy):
    with StubServer(reply=reply) as server:
        first = run(*arguments(tmp_path, policy, server.url))
        assert first.returncode == 0, first.stderr
        assert asked(server) == {"writer": 40, "judge": 40}
        (folder,) = (tmp_path / "runs").glob("export-*/dataset")
        for split in ("train", "test"):
            for row in pq.read_table(folder / f"{split}.parquet").to_pylist():
                assert row["score_chosen"] > row["score_rejected"]
                assert row["author_chosen"] == "writer"
        more = run(*arguments(tmp_path, policy, server.url), "augment.responses=6")
        assert more.returncode == 0, more.stderr
        assert asked(server) == {"writer": 60, "judge": 60}, "raising 4 to 6 pays for 2"
        again = run(*arguments(tmp_path, policy, server.url), "score.options.max_tokens=511")
        assert again.returncode == 0, again.stderr
        assert asked(server) == {"writer": 60, "judge": 100}, "a changed payload asks again"


def test_failed_requests_stop_the_stage_early_and_are_asked_for_again(tmp_path, policy):
    from bpo_data.llm.stub import refused

    options = ("augment", "runtime.concurrency=2")
    with StubServer(reply=reply, faults=[refused(400, "no")] * 12) as server:
        first = run(*arguments(tmp_path, policy, server.url, options[0]), options[1])
        assert first.returncode == 2
        assert re.search("1[12] of 40 requests failed", first.stderr), "one more was under way"
        assert "run the same command again" in " ".join(first.stderr.split())
        sent = len(server.payloads)
        assert sent <= 13, "the rest would have been a waste"
        again = run(*arguments(tmp_path, policy, server.url, options[0]), options[1])
        assert again.returncode == 0, again.stderr
        assert asked(server) == {"writer": 52}, "40 answered, 12 refused"


def test_a_few_failures_past_the_share_let_the_rest_finish_first(tmp_path, policy):
    from bpo_data.llm.stub import refused

    with StubServer(reply=reply, faults=[refused(400, "no")] * 3) as server:
        first = run(*arguments(tmp_path, policy, server.url, "augment"))
        assert first.returncode == 2
        assert "3 of 40 requests failed" in first.stderr
        assert asked(server) == {"writer": 40}
        again = run(*arguments(tmp_path, policy, server.url, "augment"))
        assert again.returncode == 0, again.stderr
        assert asked(server) == {"writer": 43}


def test_a_row_that_fails_for_ever_takes_no_other_with_it(tmp_path, policy):
    from bpo_data.llm.stub import refused

    with StubServer(reply=reply, faults=[refused(400, "no")]) as server:
        result = run(*arguments(tmp_path, policy, server.url), "augment.max_failed=0.1")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "runs").glob("augment-*/responses.parquet")
    states = Counter(pq.read_table(path)["state"].to_pylist())
    assert states == {"ok": 39, "http_error": 1}
    assert asked(server) == {"writer": 40, "judge": 39}
    assert "augment    http_error" in result.stderr
    (folder,) = (tmp_path / "runs").glob("export-*/dataset")
    prompts = {row["prompt_id"] for path in folder.glob("*.parquet") for row in rows_of(path)}
    (path,) = (tmp_path / "runs").glob("score-*/scores.parquet")
    points: dict[str, set[float]] = {}
    for row in rows_of(path):
        points.setdefault(row["response_id"].partition("/")[0], set()).add(row["score"])
    assert len(points) == 10, "the prompt of the lost row has the others"
    # Which row is lost hangs on who asks first: its prompt's other three may have equal points.
    assert prompts == {prompt for prompt, seen in points.items() if len(seen) > 1}


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_a_missing_key_is_missed_before_any_work(tmp_path, policy, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = run(*arguments(tmp_path, policy, "http://example.invalid/v1"))
    assert result.returncode == 2
    assert "OPENAI_API_KEY is not set" in result.stderr
    assert result.stdout == ""


def test_a_changed_model_folder_is_measured_again(tmp_path, policy):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(policy, model)
    source = tmp_path / "pairs.jsonl"
    source.write_text(
        "".join(
            json.dumps({"prompt": f"q {n}", "chosen": f"yes {n}", "rejected": "no"}) + "\n"
            for n in range(8)
        )
    )
    own = [
        "stage=gradients", "recipe=own_data", f"load.path={source}", f"runtime.folder={tmp_path}",
        "select.share=1", "sft.kind=given", f"sft.model={model}", "augment.client=replay",
        "score.kind=given", "gradients.rank=2", "gradients.dim=16",
    ]  # fmt: skip
    assert run(*own).returncode == 0
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = run(*own)
    verbs = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert verbs["select"] == "kept"
    assert verbs["sft"] == verbs["augment"] == verbs["gradients"] == "made"


def test_a_refused_key_is_one_line_and_never_shown(tmp_path, policy, monkeypatch):
    from bpo_data.llm.stub import echo_key

    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-indeed")
    with StubServer(reply=reply, faults=[echo_key(401)] * 200) as server:
        result = run(*arguments(tmp_path, policy, server.url, "augment"))
    assert result.returncode == 2
    assert "augment.base_url" in result.stderr
    assert "Traceback" not in result.stderr
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"very-secret" not in left
    assert "very-secret" not in result.stdout + result.stderr


def test_prompts_alone_without_a_model_say_what_is_missing(tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {n}?"}) + "\n" for n in range(9)))
    result = run("recipe=own_data", f"load.path={source}", f"runtime.folder={tmp_path}/runs")
    assert result.returncode == 2
    assert "sft has no responses to learn from" in result.stderr
    assert "sft.kind=given sft.model=" in result.stderr


@pytest.mark.slow
def test_batch_mode_makes_the_same_rows_and_each_mode_finds_the_others_replies(tmp_path, policy):
    with StubServer(reply=reply) as server:
        live = arguments(tmp_path, policy, server.url, "score")
        batch = [*live, "augment.mode=batch", "score.mode=batch"]
        first = run(*batch, f"runtime.folder={tmp_path}/by_batch")
        assert first.returncode == 0, first.stderr
        assert modes(tmp_path / "by_batch" / "requests.sqlite") == {"batch": 80}
        store = f"runtime.store={tmp_path}/by_batch/requests.sqlite"
        second = run(*live, store, "budget.requests=0")
        assert second.returncode == 0, second.stderr
        assert len(server.payloads) == 80
    digests = [
        [
            json.loads(path.read_text())["digest"]
            for path in sorted(folder.glob("[as]*/manifest.json"))
        ]
        for folder in (tmp_path / "by_batch", tmp_path / "runs")
    ]
    assert digests[0] == digests[1]


def modes(path: Path) -> dict[str, int]:
    """How many requests of the account went live, and how many by batch."""
    with RequestStore(path) as store:
        rows = store.connection.execute("SELECT mode, sum(requests) FROM attempts GROUP BY mode")
        return dict(rows.fetchall())


def test_embeddings_of_a_server_are_stored_and_planned(tmp_path, policy):
    with StubServer(reply=reply) as server:
        given = [
            *arguments(tmp_path, policy, server.url, "select"),
            "embed.kind=server", "embed.options.model=vectors",
            f"embed.options.base_url={server.url}",
        ]  # fmt: skip
        assert run(*arguments(tmp_path, policy, server.url, "load")).returncode == 0
        plan = run(*given, "plan=true")
        assert "embed: vectors" in plan.stdout
        assert server.payloads == []
        made = run(*given)
        assert made.returncode == 0, made.stderr
        assert len(server.payloads) == 1, "ten texts are one body"
        again = run(
            *given,
            f"runtime.folder={tmp_path}/other",
            f"runtime.store={tmp_path}/runs/requests.sqlite",
        )
        assert again.returncode == 0, again.stderr
        assert len(server.payloads) == 1
