"""The files of a run: those of each shard, and one data set of all shards. Every row is accounted for."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from uniedit_hf.calls.messages import EncodedImage, data_url
from uniedit_hf.files import write_text, written_file, written_folder
from uniedit_hf.release.parquet import write_encoded_rows
from uniedit_hf.schema import TASK_CATEGORIES, row_features, stable_id
from uniedit_hf.synthesis.prompt_texts import FOLDER
from uniedit_hf.synthesis.records import STAGES, Draft, Rejection, finished, record_to_row, variant_choices
from uniedit_hf.synthesis.settings import Settings
from uniedit_hf.synthesis.stages.duplicates import SeenBefore


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
# Columns that merging needs in addition: position in the source, the question, and hashes of the image.
MERGE_COLUMNS = pa.schema(
    [
        ("position", pa.list_(pa.int64(), 2)),
        ("source_question", pa.string()),
        ("pixel_hash", pa.binary()),
        ("perceptual_hash", pa.binary()),
    ]
)
# The writer keeps metadata of every group in memory until the end, so groups must not be small.
ROWS_PER_GROUP = 1024
BYTES_PER_GROUP = 64 * 2**20
REJECTS_PER_GROUP = 4096
BYTES_AT_ONCE = 2 * 2**20
# Settings that may change between two runs without making a finished shard outdated.
NOT_OF_A_SHARD = {"output_dir", "engine", "budget", "export"}
# Choices with few values; counts of the others, such as the phrasing, are not informative.
COUNTED_CHOICES = ("variant", "depth", "condition", "changed", "edit", "medium", "font", "distractor", "resize")
NO_CATEGORY = "no category"  # plain edits of size, for which the schema has no category
MOST_EXAMPLES = 200
THUMBNAIL = 256
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
ENDINGS |= {"PPM": "ppm", "JPEG2000": "jp2"}


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
    """Writes results in order; a shard counts as made only after `close` has written the summary."""

    def __init__(self, files: ShardFiles):
        self.files = files
        files.summary.unlink(missing_ok=True)
        files.records.parent.mkdir(parents=True, exist_ok=True)
        self.schema = pa.schema([*row_features().arrow_schema, *MERGE_COLUMNS])
        # Small pages, so that a few rows can be read without the whole group.
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
        if result.split != "train":
            raise ValueError(
                f"Row {result.id} starts from an image of the split {result.split!r}: only training images go into a "
                "training set."
            )
        self.num_records += 1
        row = record_to_row(finished(result))
        row["task_category"] = None if result.category is None else TASK_CATEGORIES.index(result.category)
        row |= {"position": result.position, "source_question": result.question}
        row |= dict(zip(("pixel_hash", "perceptual_hash"), result.hashes))
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
        write_text(self.files.summary, json.dumps(summary))

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
    """A fingerprint of everything that decides the rows of a shard: settings, prompts and the source's files."""
    content = [settings.model_dump_json(exclude=NOT_OF_A_SHARD), *STAGES]
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


class Counts:
    """Records by category, by source, by editor and by each choice; rejections by stage and reason.

    `examples` is a uniform sample of the records, `rejected_examples` has the first rejection for each reason.
    """

    def __init__(self):
        self.records = self.rejects = 0
        self.by_column: dict[str, Counter[str]] = {}
        self.by_reason: Counter[tuple[str, str]] = Counter()
        self.by_stage: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.rejected_examples: dict[tuple[str, str], dict[str, Any]] = {}
        self.draw = random.Random(0)

    def record(self, row: dict[str, Any]) -> None:
        named = {
            "category": _category(row),
            "source": row["source"],
            "editor": row["editor"],
            "judge": row["judge"],
        }
        choices = variant_choices(row["variant"] or "")
        named |= {name: choices[name] for name in COUNTED_CHOICES if name in choices}
        for name, value in named.items():
            self.by_column.setdefault(name, Counter())[str(value)] += 1
        self.records += 1
        # Reservoir sampling: every record is equally likely to be an example.
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(example(row))
        elif (place := self.draw.randrange(self.records)) < MOST_EXAMPLES:
            self.examples[place] = example(row)

    def reject(self, row: dict[str, Any]) -> None:
        key = (row["stage"], row["reason"])
        self.rejects += 1
        self.by_reason[key] += 1
        self.by_stage[row["stage"]] += 1
        self.rejected_examples.setdefault(key, row)

    def stages(self) -> list[dict[str, Any]]:
        """For each stage the number of rows that entered, were rejected, and left."""
        left, table = self.records + self.rejects, []
        for stage in STAGES:
            rejected = self.by_stage[stage]
            table.append({"stage": stage, "taken": left, "rejected": rejected, "given": left - rejected})
            left -= rejected
        return table


def example(row: dict[str, Any]) -> dict[str, Any]:
    """The part of a row that the report shows; small, so that many fit into memory."""
    return {
        "category": _category(row),
        "choices": variant_choices(row["variant"] or ""),
        "scores": {name: score for name, score in row["scores"].items() if score is not None},
        **{name: row[name] for name in ("instruction", "question", "answer", "source_size", "target_size")},
        "source": _thumbnail(row["source_image"]["bytes"]),
        "target": _thumbnail(row["target_image"]["bytes"]),
    }


def _thumbnail(data: bytes) -> str:
    """A thumbnail as a data URL."""
    image = EncodedImage(data).pixels()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return data_url(buffer.getvalue(), "webp")


def _category(row: dict[str, Any]) -> str:
    number = row["task_category"]
    return NO_CATEGORY if number is None else TASK_CATEGORIES[number]


class OfficialWriter:
    """Writes rows of our schema as `uniedit_148k.jsonl` (`uniedit_40k.jsonl` for the shares of that name), with images
    named by the hash of their content. `uniedit dataset build` reads it.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        name = "40k" if settings.balance.shares == "40k" else "148k"
        self.manifest = open(folder / f"uniedit_{name}.jsonl", "w", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        category = row["task_category"]
        quality = row["scores"]["quality"]
        line = {
            "task_category": TASK_CATEGORIES[category] if isinstance(category, int) else category,
            "original_question": row["question"],
            "original_answer": row["answer"],
            "process_answer": row["answer"],
            "image_path": self._image(row["source_image"]["bytes"]),
            "edit_instruction": row["instruction"],
            "output_image_path": self._image(row["target_image"]["bytes"]),
            "subject": row["source"],
            **({"score": quality} if quality is not None else {}),
        }
        self.manifest.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __enter__(self) -> OfficialWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.manifest.close()

    def _image(self, data: bytes) -> str:
        """The path of an image below the folder."""
        digest = stable_id(data)
        path = f"images/{digest[:2]}/{digest}.{_ending(data)}"
        if not (self.folder / path).exists():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_bytes(data)
        return path


def _ending(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return ENDINGS.get(image.format, "png")


@dataclass
class Merged:
    """The result of a run.

    Args:
        dataset: The folder of Parquet files.
        summaries: Summaries of the shards.
        counts: Counts of records and rejections.
    """

    dataset: Path
    summaries: list[dict[str, Any]]
    counts: Counts = field(default_factory=Counts)

    @property
    def stopped(self) -> str | None:
        """The reason why the run stopped early, or None."""
        return next(filter(None, (summary["stopped"] for summary in self.summaries)), None)

    @property
    def failed(self) -> int:
        """Rows that were rejected because no attempt at a call succeeded; the next run tries them again."""
        return sum(summary["failed"] for summary in self.summaries)


def merge(settings: Settings) -> Merged:
    """Writes `dataset/`, `rejects.parquet` and, if requested, `official/`, and replaces the previous ones.

    Raises:
        RuntimeError: If a shard is missing, or rows were lost or duplicated.
    """
    output_dir = settings.output_dir
    shards = [ShardFiles(output_dir, number) for number in range(settings.shards)]
    summaries = [files.read_summary() for files in shards]
    if None in summaries:
        raise RuntimeError(f"Shard {summaries.index(None)} of {output_dir} was not made, and nothing says why.")
    merged = Merged(output_dir / "dataset", summaries)
    with ExitStack() as places:  # all of them appear at the end, or none does
        dataset = places.enter_context(written_folder(merged.dataset))
        rejects = places.enter_context(written_file(output_dir / "rejects.parquet"))
        official = None
        if settings.export.official:
            official = OfficialWriter(places.enter_context(written_folder(output_dir / "official")), settings)
        _write_merged(shards, settings, merged.counts, dataset, rejects, official)
        expected = sum(summary["records"] + summary["rejects"] for summary in summaries)
        if merged.counts.records + merged.counts.rejects != expected:
            raise RuntimeError(
                f"The shards hold {expected} rows, but {merged.counts.records} records and {merged.counts.rejects} "
                "rejections were written."
            )
    return merged


def _write_merged(
    shards: list[ShardFiles],
    settings: Settings,
    counts: Counts,
    dataset: Path,
    rejects: Path,
    official: OfficialWriter | None,
) -> None:
    """Writes and counts the rows of all shards."""
    doubled: list[Rejection] = []
    with pq.ParquetWriter(rejects, REJECTS) as writer, official or nullcontext():
        records = _without_doubles(_in_order(files.records for files in shards), settings, doubled)
        _write_dataset(_counted(records, counts, official), dataset, settings.export.rows_per_file)
        rejected = chain(_in_order(files.rejects for files in shards), map(reject_row, doubled))
        while rows := list(islice(rejected, REJECTS_PER_GROUP)):
            for row in rows:
                counts.reject(row)
            writer.write_table(pa.Table.from_pylist(rows, REJECTS))


def _in_order(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of all files in the order of the source."""
    return heapq.merge(*map(read_rows, files), key=lambda row: row.get("position") or [row["row"], row["turn"]])


def _without_doubles(
    rows: Iterator[dict[str, Any]], settings: Settings, doubled: list[Rejection]
) -> Iterator[dict[str, Any]]:
    """The rows without duplicates of earlier rows in other shards. Shards themselves contain no duplicates, and
    planned edits have no image in two shards.
    """
    if settings.shards == 1 or settings.planned:
        yield from rows
        return
    seen = SeenBefore(settings.output_dir / "work" / "seen" / "merged.sqlite", settings.screen.similarity)
    try:
        for row in rows:
            draft = Draft(
                position=tuple(row["position"]),
                id=row["id"],
                image=EncodedImage(b""),
                question=row["source_question"],
                answer=row["answer"],
                source=row["source"],
                instruction=row["instruction"],
                hashes=(row["pixel_hash"], row["perceptual_hash"]),
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
        row = {name: value for name, value in row.items() if name not in MERGE_COLUMNS.names}
        counts.record(row)
        if official is not None:
            official.write(row)
        yield row


def _write_dataset(rows: Iterator[dict[str, Any]], folder: Path, rows_per_file: int) -> None:
    """Writes files of `rows_per_file` rows, which get their names once the number of files is known."""
    written = []
    for first in rows:
        written.append(folder / f"{len(written)}.parquet")
        write_encoded_rows(chain([first], islice(rows, rows_per_file - 1)), written[-1])
    for number, path in enumerate(written):
        path.rename(folder / f"train-{number:05d}-of-{len(written):05d}.parquet")
