"""Where prompts come from: files, the hub, or the generated world of the quickstart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from bpo_data.components.rows import Rejected, Row
from bpo_data.errors import UserError


class Source(Protocol):
    def problems(self) -> Iterator[str]:
        """What is wrong with the settings, found without reading any row."""

    def digests(self) -> dict[str, str]:
        """Name -> digest of what is read from outside, so that a change is noticed."""

    def rows(self) -> Iterator[Row | Rejected]:
        """Every row, good or set aside, in the source's order."""


class Files:
    """Parquet, JSONL, JSON, CSV or TSV files, plain or gzipped, of any layout we recognise."""

    def __init__(
        self,
        path: str,
        columns: Mapping[str, str],
        roles: Mapping[str, str] | None = None,
        on_bad_file: str = "stop",
        unpacked_gb: float = 0,
    ) -> None:
        self.path = path
        self.columns = dict(columns)
        self.roles = dict(roles or {})
        self.on_bad_file = on_bad_file
        self.unpacked_gb = unpacked_gb
        self.seen: set[str] = set()
        self.scratch: Path | None = None
        """A folder for what memory does not hold."""

    def problems(self) -> Iterator[str]:
        from bpo_data.components.reading import column_problems, find_files, role_problems

        yield from column_problems(self.columns)
        yield from role_problems(self.roles)
        if self.on_bad_file not in ("stop", "skip"):
            yield f"load.options.on_bad_file={self.on_bad_file}: choose stop or skip."
        if not 0 <= self.unpacked_gb < float("inf"):
            yield f"load.options.unpacked_gb={self.unpacked_gb}: give gigabytes, or 0."
        if not self.path:
            yield "load.path is empty: name a file, a folder or a pattern of files."
            return
        try:
            find_files(self.path)
        except UserError as error:
            yield str(error)

    def digests(self) -> dict[str, str]:
        from bpo_data.components.reading import find_files
        from bpo_data.disk import sha256

        return {str(path): sha256(path) for path in find_files(self.path)}

    def rows(self) -> Iterator[Row | Rejected]:
        from bpo_data.components.reading import Columns, FileRejected, find_files, read

        skip = self.on_bad_file == "skip"
        try:
            yield from read(
                self.path,
                Columns(**self.columns),
                self.roles,
                skip,
                self.seen,
                self.unpacked_gb,
                self.scratch,
            )
        except FileRejected as error:
            others = len(find_files(self.path)) > 1 and not skip
            way_out = " load.options.on_bad_file=skip goes on without it." if others else ""
            raise UserError(f"{error}{way_out}") from error


class Hub:
    """A dataset of the Hugging Face hub, read as a stream; needs a network."""

    def __init__(
        self,
        name: str = "",
        subset: str = "",
        split: str = "train",
        revision: str = "main",
        columns: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.subset = subset
        self.split = split
        self.revision = revision
        self.columns = dict(columns or {})
        self.roles = dict(roles or {})
        self.scratch: Path | None = None
        """A folder for what memory does not hold."""

    def problems(self) -> Iterator[str]:
        from bpo_data.components.reading import column_problems, role_problems

        if not self.name:
            yield "load.options.name is empty: name a dataset of the hub."
        yield from column_problems(self.columns)
        yield from role_problems(self.roles)

    def digests(self) -> dict[str, str]:
        """The revision is the digest: pin a commit to be sure of the rows."""
        return {f"{self.name}/{self.subset}/{self.split}": self.revision}

    def rows(self) -> Iterator[Row | Rejected]:
        from bpo_data.components.reading import Bad, Columns, Converter, as_json

        converter: Converter | None = None
        for number, record in enumerate(self.records()):
            origin = f"{self.name}@{self.revision}#{number}"
            try:
                if converter is None:
                    columns = Columns(**self.columns)
                    converter = Converter(
                        record.keys(), columns, self.roles, textual=False, scratch=self.scratch
                    )
                yield converter.row(record, origin)
            except Bad as bad:
                if converter is None:
                    raise UserError(f"{self.name}: {bad.detail}") from bad
                yield Rejected(origin, bad.reason, bad.detail, as_json(record))
        if converter:
            converter.ids.close()

    def records(self) -> Iterator[dict[str, Any]]:
        import datasets

        try:
            stream = datasets.load_dataset(
                self.name,
                self.subset or None,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
            yield from stream
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"load.options.name={self.name} cannot be read from the hub: {first} Check the "
                f"name, subset, split and revision, and that this machine reaches the hub."
            ) from error


class Topics:
    """The generated instruction world of the quickstart (``components.topics``)."""

    def __init__(
        self,
        seed_prompts: int = 4000,
        pool_prompts: int = 3000,
        test_prompts: int = 840,
        seed: int = 0,
        topics: str = "first",
    ) -> None:
        self.sizes = (seed_prompts, pool_prompts, test_prompts)
        self.seed = seed
        self.topics = topics

    def problems(self) -> Iterator[str]:
        from bpo_data.components.topics import SETS

        if min(self.sizes) < 0:
            yield "load.options of topics: prompt counts are 0 or more."
        if self.topics not in SETS:
            yield f"load.options.topics={self.topics}: choose {' or '.join(SETS)}."

    def digests(self) -> dict[str, str]:
        return {}

    def rows(self) -> Iterator[Row]:
        from bpo_data.components.topics import topics

        yield from topics(self.seed, *self.sizes, self.topics)


KINDS = {"files": Files, "hub": Hub, "topics": Topics}
