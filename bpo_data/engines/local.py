"""Parts made one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bpo_data import stopping
from bpo_data.engines import Part, Place, SetUp, Write, named


class Local:
    here = True
    facts: dict[str, Any] = {}  # noqa: RUF012  (never changed: there is nothing to say)

    def check(self) -> None:
        """This process can be counted on."""

    def each(
        self, parts: Iterable[Part], set_up: SetUp, write: Write, progress: Any
    ) -> Iterator[int]:
        make = None
        for part in parts:
            stopping.check()
            make = make or set_up(Place(progress=progress))
            try:
                write(part[0], make(part[1]))
            except Exception as error:  # rises whole, with what we know
                named(error, part)
                raise
            yield part[1].num_rows

    def lines(self, here: bool) -> None:
        return None
