"""Tables that are sorted by prompts, read side by side: some whole prompts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import stopping

PROMPTS = 256
"""Prompts that are read together at most; what is made of them in parts is cut here."""
ROWS = 4096
"""Rows of the first table after which no further prompt is read with them."""
OWNER = ("prompt_id", "response_id", "pair_id")
"""Columns that say whose a row is: the prompt's id, or ids that begin with it and a slash."""


def side_by_side(
    tables: Mapping[str, Iterable[pa.Table]],
) -> Iterator[dict[str, pa.Table]]:
    """The rows of some whole prompts out of every table, in the tables' order.

    The first table says which prompts there are; other prompts' rows are passed over. The tables
    come in pieces, cut anywhere. Memory holds the rows of ``PROMPTS`` prompts and a piece of each
    table, and where the cuts between prompts fall follows from the first table alone. Raises
    AssertionError for a table that is not sorted by prompts, whose rows would be missed.
    """
    (first, pieces), *others = tables.items()
    readers = {name: Reader(name, rest) for name, rest in others}
    for rows in whole_prompts(first, pieces):
        stopping.check()
        names = owners(rows).unique()
        yield {first: rows} | {name: reader.of(names) for name, reader in readers.items()}
    for reader in readers.values():
        reader.close()


def whole_prompts(name: str, pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """A table, cut behind the ``PROMPTS``-th prompt or the one that brings ``ROWS`` rows."""
    rest: pa.Table | None = None
    for piece in checked(name, pieces):
        rest = pa.concat_tables([rest, piece]) if rest else piece
        while end := complete(rest):
            yield rest.slice(0, end)
            rest = rest.slice(end)
    if rest:
        yield rest


def complete(rows: pa.Table) -> int:
    """How many rows the first prompts have that are to be read together; 0 while that is open."""
    names = owners(rows)
    changes = pc.not_equal(names[1:], names[:-1])
    starts = pc.add(pc.indices_nonzero(changes), 1).to_numpy()
    end = min(PROMPTS - 1, int(starts.searchsorted(ROWS)))
    return int(starts[end]) if end < len(starts) else 0


class Reader:
    """Gives the rows of prompts out of a sorted table, asked for in its order."""

    def __init__(self, name: str, pieces: Iterable[pa.Table]) -> None:
        self.name = name
        self.pieces = checked(name, pieces)
        self.ahead: pa.Table | None = None
        """What was read beyond the prompts asked for last."""
        self.found: list[pa.Table] = []
        """Their rows; those before them are none, with the table's columns."""

    def of(self, names: pa.Array) -> pa.Table:
        """The rows of these prompts, which are sorted and beyond all that were asked for before."""
        self.found = [one.slice(0, 0) for one in self.found[:1]]
        while piece := self.ahead or next(self.pieces, None):
            whose = owners(piece)
            self.found.append(piece.filter(pc.is_in(whose, names)))
            self.ahead = piece.filter(pc.greater(whose, names[-1]))
            if self.ahead:
                break
        if not self.found:
            raise KeyError(f"{self.name} has no rows")
        return pa.concat_tables(self.found).combine_chunks()

    def close(self) -> None:
        """Read on to the end: a row that stands where it should not is found."""
        for _ in self.pieces:
            pass


def checked(name: str, pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The pieces that have rows. Raises AssertionError where they are not sorted by prompts."""
    last = ""
    for piece in pieces:
        if not piece.num_rows:
            continue
        whose = owners(piece)
        before = pa.concat_arrays([pa.array([last], whose.type), whose[:-1]])
        if pc.any(pc.less(whose, before)).as_py():
            raise AssertionError(f"{name} is not sorted by prompts: no row of it can be looked up")
        last = whose[-1].as_py()
        yield piece


def owners(rows: pa.Table) -> pa.Array:
    """The prompt of each row."""
    column = next(name for name in OWNER if name in rows.column_names)
    ids = rows[column].combine_chunks()
    if column == "prompt_id":
        return ids
    return pc.list_element(pc.split_pattern(ids, "/", max_splits=1), 0)
