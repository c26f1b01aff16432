"""Column types, joins and ids shared by all tables."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np


class Message(TypedDict):
    """One turn of a conversation; ``role`` is system, user, assistant or tool."""

    role: str
    content: str


ID = pa.string()
MSG = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


def columns(**types: pa.DataType | pa.Field) -> pa.Schema:
    """A schema of non-null columns; wrap a type in ``maybe`` where null has a meaning."""
    fields = []
    for name, kind in types.items():
        nullable = isinstance(kind, pa.Field)
        fields.append(pa.field(name, kind.type if nullable else kind, nullable=nullable))
    return pa.schema(fields)


def maybe(kind: pa.DataType) -> pa.Field:
    """A column of this type in which null means "not known"."""
    return pa.field("", kind, nullable=True)


def vector(dim: int) -> pa.DataType:
    """A column of float32 rows of length ``dim``."""
    return pa.list_(pa.float32(), dim)


def vectors(matrix: np.ndarray) -> pa.Array:
    """(n, d) numbers -> a ``vector(d)`` array of n rows."""
    import numpy as np

    flat = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A ``vector(d)`` column of n rows -> (n, d) float32."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, whole.type.list_size)


def lookup(table: pa.Table, key: str, ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> pa.Table:
    """The rows of ``table`` whose ``key`` equals each of ``ids``, in the order of ``ids``.

    Arrow's own joins refuse list columns. Raises KeyError naming the first id that has no row.
    """
    import pyarrow.compute as pc

    wanted = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, ID)
    where = pc.index_in(wanted, table[key].combine_chunks())
    if where.null_count:
        first = next(i for i, place in zip(wanted, where, strict=True) if not place.is_valid)
        raise KeyError(f"{key} {first.as_py()} has no row in the table it points to")
    return table.take(where)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def prompt_id(prompt: Iterable[Message]) -> str:
    """16 hex digits of sha256 of the canonical JSON of the whole message list."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    return hashlib.sha256(canonical(turns).encode()).hexdigest()[:16]


def same_text(text: str) -> str:
    """The form under which two responses count as the same: Unicode NFC, outer space removed."""
    return unicodedata.normalize("NFC", text).strip()


def lot(seed: int, purpose: str, name: str) -> str:
    """A random number that belongs to a row: sorting names by it is a seeded shuffle.

    It depends on the seed, the purpose and the name alone, so neither the order of rows nor a
    crash and resume changes what is drawn. Each draw has a purpose of its own: rows that one draw
    chose would otherwise come first in the next.
    """
    return hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).hexdigest()
