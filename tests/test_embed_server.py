"""The embedder behind a server: what is sent, what comes back, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bpo_data.artifacts import Draft
from bpo_data.components.embedders import Server
from bpo_data.errors import UserError
from bpo_data.llm.desk import Desk
from bpo_data.llm.stub import Fault, Payload, StubServer, refused
from bpo_data.llm.stub.answers import embeddings, unit_vector
from bpo_data.runtime import Runtime
from bpo_data.stages import embed
from bpo_data.stages.embed import EmbedConfig
from bpo_data.tables import matrix

TEXTS = [f"prompt number {number} speaks of {number % 7} apples" for number in range(150)]


pytestmark = pytest.mark.usefixtures("plain_environment")


def vectors(
    server: StubServer, folder: Path, texts: Sequence[str] = TEXTS, **options: Any
) -> np.ndarray:
    embedder = Server("tiny", base_url=server.url, **options)
    return embedder(texts, 0, Desk("embed", Runtime(folder=str(folder))))


def expected(texts: Sequence[str], size: int = 256) -> np.ndarray:
    return np.stack([unit_vector(text, size) for text in texts])


def with_rows(change: Callable[[list[Payload]], list[Payload]]) -> Callable[..., Fault]:
    """The stub's own answer with its rows changed."""

    def rule(payload: Payload, before: int) -> Fault:
        body = embeddings(payload)
        return Fault(body=json.dumps({**body, "data": change(body["data"])}))

    return rule


def test_vectors_are_the_servers_scaled_to_length_1(tmp_path: Path) -> None:
    def stretched(rows: list[Payload]) -> list[Payload]:
        return [{**row, "embedding": [5 * x for x in row["embedding"]]} for row in rows]

    with StubServer(fault_rule=with_rows(stretched)) as server:
        found = vectors(server, tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-6)


def test_a_body_holds_up_to_64_texts_and_no_text_is_sent_twice(tmp_path: Path) -> None:
    with StubServer() as server:
        first = vectors(server, tmp_path, [*TEXTS, TEXTS[3]])
        sizes = sorted(len(payload["input"]) for payload in server.payloads)
        assert sizes == [22, 64, 64]
        assert server.payloads[0].keys() == {"input", "model", "encoding_format"}
        np.testing.assert_array_equal(first[-1], first[3])
        server.payloads.clear()
        np.testing.assert_array_equal(vectors(server, tmp_path), first[:-1])
        assert server.payloads == []
        more = vectors(server, tmp_path, ["a new prompt", *TEXTS])
        assert [payload["input"] for payload in server.payloads] == [["a new prompt"]]
        np.testing.assert_array_equal(more[1:], first[:-1])


def test_the_order_of_prompts_changes_no_row(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = [TEXTS[row] for row in order]
    with StubServer() as server:
        straight = vectors(server, tmp_path / "a")
        np.testing.assert_array_equal(vectors(server, tmp_path / "b", shuffled), straight[order])


def test_another_length_of_vector_is_asked_anew(tmp_path: Path) -> None:
    with StubServer() as server:
        vectors(server, tmp_path, TEXTS[:2])
        short = vectors(server, tmp_path, TEXTS[:2], dimensions=8)
        assert [payload.get("dimensions") for payload in server.payloads] == [None, 8]
    np.testing.assert_allclose(short, expected(TEXTS[:2], 8), atol=1e-6)


def test_a_text_without_words_is_not_sent_and_gets_zeros(tmp_path: Path) -> None:
    with StubServer() as server:
        found = vectors(server, tmp_path, ["", "two words", " \n\t"])
        assert [payload["input"] for payload in server.payloads] == [["two words"]]
        assert not found[[0, 2]].any()
        np.testing.assert_allclose(found[1], expected(["two words"])[0], atol=1e-6)
        assert vectors(server, tmp_path, ["", " "], dimensions=3).tolist() == [[0, 0, 0]] * 2


TOO_LONG = {
    "OpenAI": (400, "This model's maximum context length is 8192 tokens."),
    "text-embeddings-inference": (413, "`inputs` must have less than 512 tokens. Given: 600"),
    "Ollama": (400, "the input length exceeds the context length"),
}


@pytest.mark.parametrize("server_kind", TOO_LONG)
def test_a_text_too_long_takes_no_other_with_it(tmp_path: Path, server_kind: str) -> None:
    status, words = TOO_LONG[server_kind]
    long = [*TEXTS[:40], "long " * 600, *TEXTS[40:]]

    def rule(payload: Payload, before: int) -> Fault | None:
        too_long = any(len(text.split()) > 512 for text in payload["input"])
        return refused(status, words) if too_long else None

    with StubServer(fault_rule=rule) as server:
        found = vectors(server, tmp_path, long)
        assert len(server.payloads) <= 3 + 2 * 6, "halved until it is alone"
    assert not found[40].any()
    np.testing.assert_allclose(np.delete(found, 40, axis=0), expected(TEXTS), atol=1e-6)


def test_a_server_that_takes_fewer_texts_a_body_gets_fewer(tmp_path: Path) -> None:
    def rule(payload: Payload, before: int) -> Fault | None:
        size = len(payload["input"])
        return refused(422, f"batch size {size} > maximum allowed 32") if size > 32 else None

    with StubServer(fault_rule=rule) as server:
        np.testing.assert_allclose(vectors(server, tmp_path), expected(TEXTS), atol=1e-6)


def test_a_filtered_text_is_filtered_alone(tmp_path: Path) -> None:
    def rule(payload: Payload, before: int) -> Fault | None:
        return refused(400, "No.", code="content_filter") if TEXTS[7] in payload["input"] else None

    with StubServer(fault_rule=rule) as server:
        found = vectors(server, tmp_path)
        asked = len(server.payloads)
        np.testing.assert_array_equal(vectors(server, tmp_path), found)
        assert len(server.payloads) == asked, "what was filtered stays filtered"
    assert np.flatnonzero(~found.any(axis=1)).tolist() == [7]


def test_a_setting_that_no_text_can_pass_ends_the_run_soon(tmp_path: Path) -> None:
    with StubServer(refuses=["dimensions"]) as server:
        with pytest.raises(UserError, match=r"embed\.options: .* failed.*'dimensions' is not"):
            vectors(server, tmp_path, dimensions=8)
        assert len(server.payloads) <= 3


MALFORMED: dict[str, Callable[[list[Payload]], list[Payload]]] = {
    "one is missing": lambda rows: rows[:-1],
    "one too many": lambda rows: [*rows, rows[0]],
    "an index twice": lambda rows: [*rows[:-1], rows[0]],
    "no number": lambda rows: [{**rows[0], "embedding": [float("nan")] * 8}, *rows[1:]],
    "empty": lambda rows: [{**rows[0], "embedding": []}, *rows[1:]],
    "no base64": lambda rows: [{**rows[0], "embedding": "?"}, *rows[1:]],
    "no rows": lambda rows: [],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_vectors_that_cannot_be_told_apart_are_not_kept(tmp_path: Path, name: str) -> None:
    with StubServer(fault_rule=with_rows(MALFORMED[name])) as server:
        with pytest.raises(UserError, match=r"embed\.options: .* requests failed.*no vectors"):
            vectors(server, tmp_path)
        server.fault_rule = None
        np.testing.assert_allclose(vectors(server, tmp_path), expected(TEXTS), atol=1e-6)


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    with StubServer(fault_rule=with_rows(lambda rows: rows[::-1])) as server:
        np.testing.assert_allclose(vectors(server, tmp_path), expected(TEXTS), atol=1e-6)


def test_vectors_of_two_lengths_or_of_another_than_asked_are_refused(tmp_path: Path) -> None:
    def cut(rows: list[Payload]) -> list[Payload]:
        return [{**row, "embedding": row["embedding"][:50]} for row in rows]

    with StubServer() as server:
        vectors(server, tmp_path, TEXTS[:3])
        server.fault_rule = with_rows(cut)
        with pytest.raises(UserError, match=r"vectors of 50 and 256 numbers.*runtime\.store"):
            vectors(server, tmp_path, TEXTS[:4])
        with pytest.raises(UserError, match=r"embed\.options\.dimensions=64, but .* 50 numbers"):
            vectors(server, tmp_path, TEXTS[:4], dimensions=64)


def test_failures_up_to_a_share_get_zeros(tmp_path: Path) -> None:
    def rule(payload: Payload, before: int) -> Fault | None:
        return refused(400, "Bad") if TEXTS[149] in payload["input"] else None

    with StubServer(fault_rule=rule) as server:
        found = vectors(server, tmp_path, max_failed=0.2)
    assert np.flatnonzero(~found.any(axis=1)).tolist() == list(range(128, 150)), "the last body"


def test_no_vector_at_all_is_an_error(tmp_path: Path) -> None:
    words = "This model's maximum context length is 2 tokens."
    failed = pytest.raises(UserError, match="no vector for any of 3 prompts: 400: This model")
    with StubServer(fault_rule=lambda *_: refused(400, words)) as server, failed:
        vectors(server, tmp_path, TEXTS[:3])


def prompts(texts: Sequence[str]) -> pa.Table:
    rows = [
        {
            "prompt_id": f"{number:016x}",
            "prompt": [{"role": "user", "content": text}],
            "split": "pool" if number else "test",
        }
        for number, text in enumerate(["held out", *texts])
    ]
    return pa.Table.from_pylist(rows)


def test_the_stage_writes_the_pools_vectors_and_says_what_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rule(payload: Payload, before: int) -> Fault | None:
        long = "long" in payload["input"]
        return refused(400, "The context length is 1 token.") if long else None

    runtime = Runtime(folder=str(tmp_path))
    with StubServer(fault_rule=rule) as server:
        config = EmbedConfig("server", {"model": "tiny", "base_url": server.url})
        assert list(config.problems()) == []
        embed.ready(config)
        draft = Draft(tmp_path, "embeddings", embed.schema(config), {}, "embed")
        embed.run(draft, config, runtime, prompts=prompts(["one", "long", "", "two"]))
    rows = draft.read()
    assert rows["prompt_id"].to_pylist() == [f"{number:016x}" for number in (1, 2, 3, 4)]
    wanted = expected(["one", "two"])
    np.testing.assert_allclose(matrix(rows["embedding"])[[0, 3]], wanted, atol=1e-6)
    assert (draft.facts["dim"], draft.facts["empty"]) == (256, 2)
    assert draft.facts["requests"]["states"] == {"ok": 2, "too_long": 1}
    assert "1 of 4 prompts got no vector from the server; theirs are zeros (25 %)" in caplog.text


def test_a_missing_key_and_wrong_options_are_found_before_any_work() -> None:
    with pytest.raises(UserError, match=r"OPENAI_API_KEY is not set and embed\.options\.base_url"):
        embed.ready(EmbedConfig("server", {"model": "tiny"}))
    embed.ready(EmbedConfig())
    for options, words in [
        ({}, "model"),
        ({"model": ""}, "model is empty"),
        ({"model": "tiny", "base_url": "localhost"}, "embed.options.base_url=localhost is no"),
        ({"model": "tiny", "dimension": 3}, "Did you mean dimensions?"),
        ({"model": "tiny", "dimensions": -1}, "dimensions must be 0 or more"),
        ({"model": "tiny", "max_failed": 2.0}, "a share from 0 to 1"),
    ]:
        (problem,) = EmbedConfig("server", options).problems()
        assert words in problem
