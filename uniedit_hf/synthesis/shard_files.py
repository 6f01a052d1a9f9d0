"""What a shard leaves on disk: its records, its rejections and a summary, which is written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uniedit_hf.schema import TASK_CATEGORIES, row_features
from uniedit_hf.synthesis.prompt_texts import FOLDER
from uniedit_hf.synthesis.records import Draft, Rejection, finished, record_to_row
from uniedit_hf.synthesis.settings import Settings


REJECTS = pa.schema(
    [
        ("row", pa.int64()),
        ("turn", pa.int64()),
        ("id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("reply", pa.string()),
        ("question", pa.string()),
    ]
)
# What merging needs beside the row: its place, and what it looks like.
BESIDE = pa.schema(
    [("position", pa.list_(pa.int64(), 2)), ("asked", pa.string()), ("pixels", pa.binary()), ("look", pa.binary())]
)
BESIDE_NAMES = tuple(BESIDE.names)
# The writer keeps a description of every group in memory until the end, so groups must not be small.
ROWS_PER_GROUP = 1024
BYTES_PER_GROUP = 64 * 2**20
REJECTS_PER_GROUP = 4096
BYTES_AT_ONCE = 2 * 2**20
# What may change between two runs without making a finished shard outdated.
NOT_OF_A_SHARD = {"output_dir", "engine", "budget", "export"}


class ShardFiles:
    """The files of one shard below `OUT/work`."""

    def __init__(self, output_dir: Path, number: int):
        folder = output_dir / "work" / "shards"
        self.records = folder / f"{number:05d}.records.parquet"
        self.rejects = folder / f"{number:05d}.rejects.parquet"
        self.summary = folder / f"{number:05d}.json"

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, if the shard has been made."""
        return json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.exists() else None


class ShardWriter:
    """Writes results in the order in which they come; nothing counts before `close` has written the summary."""

    def __init__(self, files: ShardFiles):
        self.files = files
        files.summary.unlink(missing_ok=True)
        files.records.parent.mkdir(parents=True, exist_ok=True)
        self.schema = pa.schema([*row_features().arrow_schema, *BESIDE])
        # Small pages, so that a few rows can be read without the rest of their group.
        pages = {"write_batch_size": 8, "use_dictionary": False}
        self.records = pq.ParquetWriter(files.records, self.schema, write_statistics=False, **pages)
        self.rejects = pq.ParquetWriter(files.rejects, REJECTS, write_statistics=False)
        self.record_rows: list[dict[str, Any]] = []
        self.reject_rows: list[dict[str, Any]] = []
        self.bytes = self.num_records = self.num_rejects = 0

    def write(self, result: Draft | Rejection) -> None:
        if isinstance(result, Rejection):
            self.num_rejects += 1
            self.reject_rows.append(reject_row(result))
            if len(self.reject_rows) >= REJECTS_PER_GROUP:
                self._flush_rejects()
            return
        self.num_records += 1
        row = record_to_row(finished(result))
        row["task_category"] = TASK_CATEGORIES.index(result.category)
        pixels, look = result.hashes
        row |= {"position": result.position, "asked": result.question, "pixels": pixels, "look": look}
        self.record_rows.append(row)
        self.bytes += len(result.image.data) + len(result.target.data)
        if len(self.record_rows) >= ROWS_PER_GROUP or self.bytes >= BYTES_PER_GROUP:
            self._flush_records()

    def close(self, summary: dict[str, Any]) -> None:
        """Finishes the files and writes the summary."""
        self._flush_records()
        self._flush_rejects()
        self.records.close()
        self.rejects.close()
        unfinished = self.files.summary.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(summary), encoding="utf-8")
        unfinished.replace(self.files.summary)

    def _flush_records(self) -> None:
        if self.record_rows:
            self.records.write_table(pa.Table.from_pylist(self.record_rows, self.schema))
        self.record_rows, self.bytes = [], 0

    def _flush_rejects(self) -> None:
        if self.reject_rows:
            self.rejects.write_table(pa.Table.from_pylist(self.reject_rows, REJECTS))
        self.reject_rows = []


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, a few at a time: all shards are read at once when they are merged."""
    with pq.ParquetFile(file, memory_map=True) as table:
        groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
        row_bytes = 1 + sum(group.total_byte_size for group in groups) // max(1, table.metadata.num_rows)
        at_once = min(max(1, BYTES_AT_ONCE // row_bytes), ROWS_PER_GROUP)
        for batch in table.iter_batches(at_once):
            yield from batch.to_pylist()


def fingerprint(settings: Settings) -> str:
    """Changes with everything that decides the rows of a shard: settings, prompts and the source's files."""
    content = [settings.model_dump_json(exclude=NOT_OF_A_SHARD)]
    content += [file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.md"))]
    for file in (*getattr(settings.source, "files", ()), *getattr(settings.source, "archives", ())):
        if file.is_file():
            status = file.stat()
            content.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


def reject_row(rejection: Rejection) -> dict[str, Any]:
    """The rejection as a row of `REJECTS`."""
    row, turn = rejection.position
    return {
        "row": row,
        "turn": turn,
        "id": rejection.id,
        "stage": rejection.stage,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "reply": rejection.reply,
        "question": rejection.question,
    }
