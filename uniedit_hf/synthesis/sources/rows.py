"""Reads rows of JSONL and Parquet files (with their errors), and of data sets, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from uniedit_hf.release.raw import MAX_LINE_BYTES
from uniedit_hf.row_error import RowError


ROWS_AT_ONCE = 64


def rows_of_files(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any] | RowError]:
    """Every row of JSONL or Parquet files, in order.

    Args:
        files: Files, recognized by their extensions.
        columns: The Parquet columns to read.

    Raises:
        ValueError: If a file is neither, or a Parquet file is damaged or does not have a column.
        OSError: If a file cannot be opened.
    """
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet(file, columns)
        elif file.suffix in (".jsonl", ".json"):
            yield from _jsonl(file)
        else:
            raise ValueError(
                f"{file} is neither .jsonl nor .parquet: convert it, or give the file the right extension."
            )


def count_rows(files: Sequence[Path]) -> int:
    """The number of rows in the files, including invalid ones, without parsing them."""
    return sum(_count_lines(file) if file.suffix != ".parquet" else pq.read_metadata(file).num_rows for file in files)


def _jsonl(file: Path) -> Iterator[dict[str, Any] | RowError]:
    with open(file, "rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{file.name}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(MAX_LINE_BYTES)
                yield RowError("line too long", f"{place} has more than {MAX_LINE_BYTES:,} bytes; cut it or leave it.")
                continue
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                yield RowError("no JSON", f"{place} is not valid JSON ({error}): expected one object per line.")
                continue
            if isinstance(row, dict):
                yield row
            else:
                yield RowError("no JSON object", f"{place} is {str(row)[:40]!r}: expected an object with keys.")


def _parquet(file: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as table:
            for name in columns or ():
                if name not in table.schema_arrow.names:
                    raise ValueError(
                        f"{file} has no column {name!r} but {', '.join(table.schema_arrow.names)}: name the right "
                        "ones under source.columns."
                    )
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns and list(columns)):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{file} cannot be read as Parquet ({error}): fetch or write it again.") from error


def _count_lines(file: Path) -> int:
    count, last = 0, b"\n"
    with open(file, "rb") as content:
        while block := content.read(2**20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


if TYPE_CHECKING:
    from datasets import IterableDataset


def stream(dataset: str, config: str | None, split: str, where: str) -> IterableDataset:
    """The rows of a split.

    Args:
        dataset: A repository or a folder.
        config: Its configuration.
        split: Its split.
        where: The settings that name it, for error messages.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The data set {dataset!r} ({split}) cannot be loaded ({found}): check {where}, and the network if it is "
            "on the Hub."
        ) from error
