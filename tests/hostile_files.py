"""Files as nobody should send them: real-looking ones, broken in structure and in bytes."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

HH = "\n\nHuman: How do I boil an egg?\n\nAssistant: {}\n\nHuman: And then?\n\nAssistant: {}"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fish."}]

LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "pair": lambda n: {"id": f"a{n}", "prompt": f"Say {n}", "chosen": f"{n}!", "rejected": "no"},
    "hh": lambda n: {
        "chosen": HH.format("Wait.", f"Eat {n}."),
        "rejected": HH.format("Wait.", "?"),
    },
    "chat": lambda n: {
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": f"Cod {n}"}],
        "rejected": [{"role": "assistant", "content": "A dog"}],
    },
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"Hello {n}"}, {"from": "gpt", "value": "Hi"}]
    },
    "scored": lambda n: {
        "instruction": f"Add 1 to {n}",
        "input": "Show it.",
        "output": f"{n + 1}",
        "score": n / 2,
        "model": "alpha",
        "topic": "sums",
        "split": "pool",
    },
    "responses": lambda n: {
        "prompt": f"A word of {n} letters",
        "responses": [{"text": "cat", "model": "a", "score": 1}, {"text": "ox", "score": 2.5}],
    },
    "ultrafeedback": lambda n: {
        "instruction": f"Write {n}",
        "completions": [
            {
                "response": "x",
                "model": "m",
                "overall_score": 3,
                "critique": "good",
                "annotations": {"honesty": {"Rating": "4", "Rationale": "true"}, "help": 2},
            },
            {"response": "y", "overall_score": 1, "annotations": {"honesty": {"Rating": "N/A"}}},
        ],
    },
    "side_scores": lambda n: {
        "question": f"Why {n}?",
        "responses": ["because", "so"],
        "scores": [n, 0],
        "reference": "therefore",
    },
}
"""One row of every layout that the README promises to read."""

FLAT = ("pair", "hh", "scored")
"""Those whose values a table of text can hold."""

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**400), float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "\x1b[2J", "\u202e", "\r\n", "=1+1", "{{ 1 }}", "x" * 5000),
    *("Human:", "\n\nHuman: a", "\n\nAssistant:", "user", "nan", "1e999", "\u0661"),
    *([], {}, [None], [[]], [{}], {"role": "user"}, {"from": "gpt", "value": None}, [TURNS]),
]
"""Values where another is expected."""

ODD_NAMES = ("response", "id", "role", "score", "", "\x1b]0;x\a", "\ud800", "a\0")

VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that stands inside a record, however deep."""
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(pairs):
        found.append((value, key))
        if isinstance(one, dict | list):
            found += places(one)
    return found


@st.composite
def records(draw: Any, layouts: Sequence[str]) -> list[Any]:
    """A few rows of a layout, some of them with other values, keys gone, or of another layout."""
    main = draw(st.sampled_from(layouts))
    rows: list[Any] = []
    for number in range(draw(st.integers(1, 6))):
        stray = draw(st.integers(0, 9)) == 0
        name = draw(st.sampled_from(layouts)) if stray else main
        rows.append(json.loads(json.dumps(LAYOUTS[name](number))))
    for _ in range(draw(st.integers(0, 4))):
        where = places(rows)
        if not where:
            break
        container, key = draw(st.sampled_from(where))
        what = draw(st.sampled_from(("put", "drop", "wrap", "twice", "rename")))
        if what == "put":
            container[key] = copy.deepcopy(draw(VALUES))
        elif what == "wrap":
            container[key] = [container[key]]
        elif what == "drop":
            del container[key]
        elif what == "twice" and isinstance(container, list):
            container.append(container[key])
        elif isinstance(container, dict):
            name = draw(st.sampled_from(ODD_NAMES))
            container[name] = container.pop(key)
    return rows


@st.composite
def broken(draw: Any, content: bytes, most: int = 4) -> bytes:
    """Bytes with some of them changed, cut, doubled or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(found)))
        end = min(len(found), start + draw(st.sampled_from((1, 1, 2, 4, 16, 200))))
        what = draw(st.sampled_from(("flip", "cut", "double", "insert", "end", "swap")))
        if what == "flip" and start < len(found):
            found[start] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del found[start:end]
        elif what == "double":
            found[start:start] = found[start:end]
        elif what == "insert":
            found[start:start] = draw(st.sampled_from(INSERTED))
        elif what == "end":
            del found[start:]
        else:
            found[start:end] = found[start:end][::-1]
    return bytes(found)


INSERTED = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"'", b"\\", b"\\u", b","),
    *(b"[" * 200, b'{"a":' * 200, b"]", b"}", b"9" * 5000, b"\x1b[31m", b"\xc2\x9b", b"NaN", b"\t"),
    *(b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 9 + b"\x01", b"PAR1", b"\x1f\x8b\x08"),
)


def as_lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_table(rows: Sequence[Any], delimiter: str) -> bytes:
    """A header and a line a row; what is no text is written as Python shows it."""
    flat = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows([row.get(name, "") for name in names] for row in flat)
    return text.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def parquet(draw: Any, rows: Sequence[Any]) -> bytes:
    """A Parquet file of the rows that one type holds, in any of the types and codings there are."""
    named = [row for row in rows if isinstance(row, dict)] or [{"prompt": "a"}]
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in named for name in row):
        values = [row.get(name) for row in named]
        try:
            column = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            column = pa.array([json.dumps(value) for value in values])
        columns[name.encode("utf-8", "replace").decode()] = draw(retyped(column))
    names, arrays = list(columns), list(columns.values())
    if names and draw(st.integers(0, 19)) == 0:
        names, arrays = [*names, names[0]], [*arrays, arrays[0]]
    sink = io.BytesIO()
    try:
        pq.write_table(
            pa.table(arrays, names=names),
            sink,
            compression=draw(st.sampled_from(("none", "snappy", "gzip", "zstd", "brotli", "lz4"))),
            use_dictionary=draw(st.booleans()),
            row_group_size=draw(st.sampled_from((1, 2, 100))),
            data_page_version=draw(st.sampled_from(("1.0", "2.0"))),
        )
    except (pa.ArrowException, UnicodeEncodeError):
        return b"PAR1"
    return sink.getvalue()


@st.composite
def retyped(draw: Any, column: pa.Array) -> pa.Array:
    """The column in another type where Arrow can, else as it was."""
    to = draw(
        st.sampled_from(
            (
                *(None, None, pa.large_string(), pa.binary(), pa.string_view(), pa.float16()),
                *(pa.decimal128(38, 2), pa.timestamp("ns", "Europe/Berlin"), pa.int8(), pa.bool_()),
                *(pa.dictionary(pa.int32(), pa.string()), pa.null(), pa.duration("us")),
            )
        )
    )
    try:
        return column.cast(to) if to is not None else column
    except pa.ArrowException:
        return column


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """(name, bytes) of a file that claims to be data."""
    ending = draw(st.sampled_from(("jsonl", "json", "csv", "tsv", "parquet")))
    rows = draw(records(FLAT if ending in ("csv", "tsv") else tuple(LAYOUTS)))
    if ending == "parquet":
        content = draw(parquet(rows))
    elif ending in ("csv", "tsv"):
        content = as_table(rows, "," if ending == "csv" else "\t")
    elif ending == "json":
        content = json.dumps(rows, indent=draw(st.sampled_from((None, 1)))).encode()
    else:
        content = as_lines(rows)
    if draw(st.booleans()):
        content = draw(broken(content))
    if ending != "parquet" and draw(st.integers(0, 3)) == 0:
        ending, content = ending + ".gz", draw(broken(gzip.compress(content, mtime=0), 2))
    return f"data.{ending}", content
