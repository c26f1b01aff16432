"""A format's folder: rows streamed into its files, what is left out, and the texts beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import disk
from bpo_data.artifacts import Draft
from bpo_data.components.exporters.rows import Exporter, Made, Row
from bpo_data.components.exporters.shuffling import Shuffled
from bpo_data.streaming import Growing
from bpo_data.tables import ID, columns, lot

BATCH = 1000
"""Rows held before they are written."""


class Stream:
    """A Parquet or JSON-lines file written row by row, whole or not there."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.writing = path.with_name(path.name + ".writing")
        self.waiting: list[Mapping[str, Any]] = []
        self.file: Any = None

    def add(self, values: Mapping[str, Any]) -> None:
        self.waiting.append(values)
        if len(self.waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self.path.suffix == ".jsonl":
            self.file = self.file or self.writing.open("w", encoding="utf-8")
            for values in self.waiting:
                self.file.write(json.dumps(values, ensure_ascii=False) + "\n")
        else:
            import pyarrow.parquet as pq

            table = pa.Table.from_pylist(self.waiting, schema=self.schema)
            self.file = self.file or pq.ParquetWriter(self.writing, self.schema, compression="zstd")
            self.file.write_table(table)
        self.waiting = []

    def close(self) -> None:
        self.flush()
        self.file.close()
        disk.sync_file(self.writing)
        os.rename(self.writing, self.path)


class Folder:
    """``formats/<name>`` of an artifact in the making; no digest covers its files."""

    def __init__(self, draft: Draft, name: str, exporter: Exporter, seed: int) -> None:
        self.draft = draft
        self.name = name
        self.exporter = exporter
        self.seed = seed
        self.streams: dict[str, Stream] = {}
        self.left_out: list[dict[str, str]] = []
        self.lacking: Growing | None = None
        self.later = Shuffled(draft.folder)

    def add(self, split: str, row: Row) -> None:
        if row.reason:
            self.leave_out(row)
        elif self.exporter.shuffled:
            self.later.add(lot(self.seed, f"export {self.name}", row.id), (split, row.values))
        else:
            self.write(split, row.values)

    def leave_out(self, row: Row) -> None:
        self.left_out.append({self.exporter.key: row.id, "reason": row.reason})
        if len(self.left_out) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is left out."""
        if self.left_out:
            schema = columns(**{self.exporter.key: ID, "reason": pa.string()})
            self.lacking = self.lacking or Growing(self.path("left_out.parquet"), schema)
            self.lacking.add(pa.Table.from_pylist(self.left_out, schema))
            self.left_out = []

    def write(self, split: str, values: Mapping[str, Any]) -> None:
        if split not in self.streams:
            path = self.path(split + self.exporter.suffix)
            self.streams[split] = Stream(path, self.exporter.columns)
        self.streams[split].add(values)

    def close(self, longest: int, counts: Mapping[str, int]) -> None:
        """Bring everything to its place; ``longest`` and ``counts`` are named beside the rows."""
        for split, values in self.later:
            self.write(split, values)
        for stream in self.streams.values():
            stream.close()
        self.flush()
        if self.lacking:
            self.lacking.close()
        files = {"README.txt": self.untrainable()}
        if "train" in self.streams:
            files = self.exporter.files(Made(longest, "test" in self.streams, counts))
        for name, text in files.items():
            disk.write_bytes(text.encode(), self.path(name))

    def untrainable(self) -> str:
        """What stands in place of the side files, which name the rows to train on."""
        lines = ["There is nothing to train on here: no row of the train split."]
        if "test" in self.streams:
            lines.append(f"test{self.exporter.suffix} holds the rows of the test split.")
        if self.lacking:
            lines.append("left_out.parquet says what was left out, and why.")
        return "\n".join(lines) + "\n"

    def path(self, name: str) -> Path:
        return self.draft.view(f"formats/{self.name}/{name}")
