"""One set of all shards: in the order of the source, without what is in two shards, with every row accounted for."""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uniedit_hf.release.parquet import write_encoded_rows
from uniedit_hf.synthesis.calls.messages import Picture
from uniedit_hf.synthesis.official import OfficialWriter
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Settings
from uniedit_hf.synthesis.shard_files import BESIDE_NAMES, REJECTS, ShardFiles, read_rows, reject_row
from uniedit_hf.synthesis.stages.duplicates import SeenBefore
from uniedit_hf.synthesis.summary import Counts


REJECTS_PER_GROUP = 4096


@dataclass
class Merged:
    """What came of a run.

    Args:
        dataset: The folder of Parquet files.
        summaries: Of the shards.
        counts: Of records and rejections.
    """

    dataset: Path
    summaries: list[dict[str, Any]]
    counts: Counts = field(default_factory=Counts)

    @property
    def stopped(self) -> str | None:
        """Why the set is not whole, if it is not."""
        return next(filter(None, (summary["stopped"] for summary in self.summaries)), None)

    @property
    def failed(self) -> int:
        """Rows that were rejected because no attempt at a call succeeded; the next run tries them again."""
        return sum(summary["failed"] for summary in self.summaries)


def merge(settings: Settings) -> Merged:
    """Writes `dataset/`, `rejects.parquet` and, if asked for, `official/`, and puts them where the last ones were.

    Raises:
        RuntimeError: A shard is missing, or rows were lost or doubled.
    """
    output_dir = settings.output_dir
    shards = [ShardFiles(output_dir, number) for number in range(settings.shards)]
    summaries = [files.read_summary() for files in shards]
    if None in summaries:
        raise RuntimeError(f"Shard {summaries.index(None)} of {output_dir} was not made, and nothing says why.")
    merged = Merged(output_dir / "dataset", summaries)
    fresh = output_dir / "work" / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "dataset").mkdir(parents=True)
    official = OfficialWriter(fresh / "official", settings) if settings.export.official else None
    with pq.ParquetWriter(fresh / "rejects.parquet", REJECTS) as rejects:
        doubled: list[Rejection] = []
        records = _without_doubles(_in_order(files.records for files in shards), settings, doubled)
        _write_dataset(_counted(records, merged.counts, official), fresh / "dataset", settings.export.rows_per_file)
        rejected = chain(_in_order(files.rejects for files in shards), map(reject_row, doubled))
        while rows := list(islice(rejected, REJECTS_PER_GROUP)):
            for row in rows:
                merged.counts.reject(row)
            rejects.write_table(pa.Table.from_pylist(rows, REJECTS))
    if official is not None:
        official.close()
    expected = sum(summary["records"] + summary["rejects"] for summary in summaries)
    if merged.counts.records + merged.counts.rejects != expected:
        raise RuntimeError(
            f"The shards hold {expected} rows, but {merged.counts.records} records and {merged.counts.rejects} "
            "rejections were written."
        )
    for name in ("dataset", "rejects.parquet", *(["official"] if official else [])):
        _replace(fresh / name, output_dir / name)
    shutil.rmtree(fresh)
    return merged


def _in_order(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of all files by their place in the source."""
    return heapq.merge(*map(read_rows, files), key=lambda row: row.get("position") or [row["row"], row["turn"]])


def _without_doubles(
    rows: Iterator[dict[str, Any]], settings: Settings, doubled: list[Rejection]
) -> Iterator[dict[str, Any]]:
    """The rows without what an earlier one of another shard has; within a shard there is nothing left to find."""
    if settings.shards == 1:
        yield from rows
        return
    seen = SeenBefore(settings.output_dir / "work" / "seen" / "merged.sqlite", settings.screen.similarity)
    try:
        for row in rows:
            draft = Draft(
                position=tuple(row["position"]),
                id=row["id"],
                image=Picture(b""),
                question=row["asked"],
                answer=row["answer"],
                source=row["source"],
                instruction=row["instruction"],
                hashes=(row["pixels"], row["look"]),
            )
            result = seen.question(draft)
            result = seen.instruction(result) if isinstance(result, Draft) else result
            if isinstance(result, Rejection):
                doubled.append(result)
            else:
                yield row
    finally:
        seen.close()


def _counted(
    rows: Iterator[dict[str, Any]], counts: Counts, official: OfficialWriter | None
) -> Iterator[dict[str, Any]]:
    for row in rows:
        row = {name: value for name, value in row.items() if name not in BESIDE_NAMES}
        counts.record(row)
        if official is not None:
            official.write(row)
        yield row


def _write_dataset(rows: Iterator[dict[str, Any]], folder: Path, rows_per_file: int) -> None:
    """Files of `rows_per_file` rows, named when their number is known."""
    written = []
    for first in rows:
        written.append(folder / f"{len(written)}.parquet")
        write_encoded_rows(chain([first], islice(rows, rows_per_file - 1)), written[-1])
    for number, path in enumerate(written):
        path.rename(folder / f"train-{number:05d}-of-{len(written):05d}.parquet")


def _replace(new: Path, old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)
