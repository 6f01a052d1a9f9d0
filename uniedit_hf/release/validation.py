"""Validates a built data set: schema, images, sizes, duplicates, categories, benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from uniedit_hf.files import write_text
from uniedit_hf.images import ImageError, open_image
from uniedit_hf.pages import render
from uniedit_hf.release.decontamination import Benchmarks, Match, read_benchmarks
from uniedit_hf.release.parquet import IMAGES, own_columns
from uniedit_hf.release.statistics import (
    PUBLISHED_ROWS,
    PUBLISHED_SHARES,
    SIDES,
    UNKNOWN,
    Statistics,
    missing_files,
    parquet_files,
)
from uniedit_hf.schema import TASK_CATEGORIES, row_features


# Difference between a category's share and the published one, in percentage points, above which a note is made.
SHARE_TOLERANCE = 2.0


@dataclass(frozen=True)
class Problem:
    """A problem that must be corrected: the file, the row in it from 1 (0: the whole file), and the error."""

    file: str
    row: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return (
            f"{self.file}, row {self.row}: {self.reason}: {self.detail}" if self.row else f"{self.file}: {self.detail}"
        )


@dataclass
class Validation:
    """The findings of a validation.

    Args:
        folder: The data set.
        counted: Statistics of each configuration.
        problems: Problems that must be corrected.
        notes: Facts worth knowing.
        matches: Rows that match an item of a benchmark.
        benchmarks: The folder with which they were compared, if any.
    """

    folder: str
    counted: list[Statistics] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    benchmarks: str | None = None

    @property
    def contaminated(self) -> int:
        """Number of rows with an image of a benchmark; a shared question alone is only a note."""
        return len({match.row_id for match in self.matches if match.kind != "same text"})

    @property
    def valid(self) -> bool:
        """Whether there are no problems."""
        return not self.problems and not self.contaminated


def validate(folder: str | Path, benchmarks: str | Path | None = None) -> Validation:
    """Reads every row and decodes every image.

    Args:
        folder: Folder made by `build`.
        benchmarks: A folder of benchmark images and questions to look for.

    Raises:
        ValueError: If there is no built data set, or nothing in `benchmarks` can be compared.
    """
    folder = Path(folder)
    found = parquet_files(folder)
    looked_for = None if benchmarks is None else read_benchmarks(Path(benchmarks))
    result = Validation(str(folder), benchmarks=None if benchmarks is None else str(benchmarks))
    result.problems += [
        Problem(name, 0, "missing file", "is missing; build it again.") for name in missing_files(folder)
    ]
    total = sum(_num_rows(file) for splits in found.values() for files in splits.values() for file in files)
    with tqdm(total=total, unit=" rows", desc="Validating") as progress:
        for config in found:
            checks = _ConfigChecks(config, result, looked_for)
            for split, files in found[config].items():
                for file in files:
                    checks.read(file, split, progress)
            checks.finish()
    if looked_for is not None:
        result.notes += [f"Could not be compared: {reason}" for reason in looked_for.unreadable]
    return result


def write_report(result: Validation, path: Path) -> None:
    """Writes the findings as an HTML page, and as JSON next to it."""
    page = render(
        "uniedit_hf.release",
        "validation.html.j2",
        result=result,
        reasons=Counter(problem.reason for problem in result.problems).most_common(),
        categories=[*TASK_CATEGORIES, UNKNOWN],
        published={counts.config: PUBLISHED_SHARES.get(counts.config, {}) for counts in result.counted},
        sides=[*(f"up to {side}" for side in SIDES), f"over {SIDES[-1]}"],
    )
    write_text(path, page)
    content = {
        "valid": result.valid,
        "contaminated": result.contaminated,
        "rows": {counts.config: counts.rows for counts in result.counted},
        "categories": {counts.config: dict(counts.categories) for counts in result.counted},
        "problems": [asdict(problem) for problem in result.problems],
        "notes": result.notes,
        "matches": [asdict(match) for match in result.matches],
    }
    write_text(path.with_suffix(".json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


class _ConfigChecks:
    """All checks of one configuration, row by row."""

    def __init__(self, config: str, result: Validation, looked_for: Benchmarks | None):
        self.counts = Statistics(config)
        self.result = result
        self.looked_for = looked_for
        self.ids: set[str] = set()
        self.edits: set[bytes] = set()
        self.repeated = 0
        self.unchanged = 0
        self.own_columns: list[str] = []

    def read(self, file: Path, split: str, progress: tqdm) -> None:
        name = f"{self.counts.config}/{file.name}"
        try:
            with pq.ParquetFile(file) as parquet:
                difference = _schema_difference(parquet.schema_arrow)
                if difference:
                    self._problem(name, 0, "schema", difference)
                    return
                self.own_columns = own_columns(parquet.schema_arrow)
                self.counts.rows[split] = self.counts.rows.get(split, 0) + parquet.metadata.num_rows
                self.counts.num_bytes[split] = self.counts.num_bytes.get(split, 0) + file.stat().st_size
                number = 0
                for batch in parquet.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        number += 1
                        self._check(name, number, row)
                    progress.update(batch.num_rows)
        except (pa.ArrowException, OSError) as error:
            self._problem(name, 0, "damaged file", f"cannot be read as Parquet ({error}); build it again.")

    def finish(self) -> None:
        counts, notes = self.counts, self.result.notes
        self.result.counted.append(counts)
        config, published = counts.config, PUBLISHED_ROWS.get(counts.config)
        of_paper = f"; the paper has about {published:,}" if published else ""
        notes.append(f"{config}: {counts.total:,} rows{of_paper}.")
        far = [
            f"{category} {counts.share(category):.1f} % (published {share:.1f} %)"
            for category, share in PUBLISHED_SHARES.get(config, {}).items()
            if abs(counts.share(category) - share) > SHARE_TOLERANCE
        ]
        if self.own_columns:
            notes.append(f"{config}: columns of its own: {', '.join(self.own_columns)}.")
        if far:
            notes.append(f"{config}: shares that differ by more than {SHARE_TOLERANCE:g} points: {', '.join(far)}.")
        if counts.same_shape < counts.total:
            notes.append(
                f"{config}: in {counts.total - counts.same_shape:,} rows source and target differ in aspect ratio, "
                "which an edit cannot follow: expected in new drawings, not in edits of a scene."
            )
        if self.repeated:
            notes.append(f"{config}: {self.repeated:,} rows have the source and instruction of an earlier one.")
        if self.unchanged:
            notes.append(f"{config}: in {self.unchanged:,} rows the target is the source, byte for byte.")

    def _check(self, file: str, number: int, row: dict[str, Any]) -> None:
        row_id = row["id"]
        if not row_id or row_id in self.ids:
            self._problem(file, number, "duplicate id", f"id is {row_id!r}: expected a unique id.")
        self.ids.add(row_id)
        if not (row["instruction"] or "").strip():
            self._problem(file, number, "no instruction", f"{row_id}: instruction is empty.")
        for column in IMAGES:
            self._check_image(file, number, row, column)
        if self.looked_for is not None:
            for column in ("question", "instruction"):
                self._match(self.looked_for.text_match(row_id, column, row[column]))
        if not row["source_size"] or not row["target_size"]:
            return
        self.counts.take({name: value for name, value in row.items() if name not in IMAGES})
        source, target = ((row[column] or {}).get("bytes") or b"" for column in IMAGES)
        self.unchanged += source == target
        edit = hashlib.blake2b(source + (row["instruction"] or "").encode(), digest_size=16).digest()
        self.repeated += edit in self.edits
        self.edits.add(edit)

    def _check_image(self, file: str, number: int, row: dict[str, Any], column: str) -> None:
        if not (row[column] or {}).get("bytes"):
            # A path may exist on this machine, but not on others.
            self._problem(file, number, "no image", f"{column} contains no bytes: expected the image itself.")
            return
        try:
            image = open_image(row[column], name=f"{column} of {row['id']}")
        except ImageError as error:
            self._problem(file, number, "unusable image", str(error))
            return
        size = row[column.replace("image", "size")]
        if size != list(image.size):
            self._problem(file, number, "wrong size", f"{column} is {list(image.size)}, its column says {size}.")
        if self.looked_for is not None:
            self._match(self.looked_for.image_match(row["id"], column, image))

    def _match(self, match: Match | None) -> None:
        if match is not None:
            self.result.matches.append(match)

    def _problem(self, file: str, row: int, reason: str, detail: str) -> None:
        self.result.problems.append(Problem(file, row, reason, detail))


def _schema_difference(schema: pa.Schema) -> str | None:
    """The difference between a file's columns and the schema, in a sentence; own columns are allowed."""
    expected = row_features().arrow_schema
    for column in expected:
        if column.name not in schema.names:
            return f"there is no column {column.name}: expected the row schema."
        found = schema.field(column.name).type
        if found != column.type:
            return f"column {column.name} is of type {found}: expected {column.type}."
    return None


def _num_rows(file: Path) -> int:
    try:
        return pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError):
        return 0  # reported where the file is read
