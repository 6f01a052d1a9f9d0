"""Statistics of a built data set, counted from its Parquet files without reading the images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from uniedit_hf.release.parquet import IMAGES
from uniedit_hf.release.raw import CONFIGS, SPLITS, in_order
from uniedit_hf.schema import TASK_CATEGORIES


# Percent of the rows, read from a figure on the paper's project page.
PUBLISHED_SHARES = {
    "148k": {
        "caption": 33.3,
        "ocr": 20.8,
        "count": 13.5,
        "location": 10.3,
        "math": 8.1,
        "shape": 5.5,
        "color": 4.4,
        "knowledge": 4.1,
    },
    "40k": {
        "location": 37.8,
        "shape": 20.0,
        "count": 16.1,
        "color": 16.1,
        "math": 2.5,
        "caption": 2.5,
        "ocr": 2.5,
        "knowledge": 2.5,
    },
}
PUBLISHED_ROWS = {"148k": 148_000, "40k": 40_000}

# Upper ends of the longer side of an image, in pixels.
SIDES = (128, 256, 512, 1024, 2048)
UNKNOWN = "not known"


@dataclass
class Statistics:
    """Counts over one configuration.

    Args:
        config: Its name: `148k`, `40k` or one of your own.
        rows: Number of rows of each split.
        num_bytes: Size of the Parquet files of each split.
        categories: Number of rows of each task category; `not known` for null.
        origins: Number of rows with each value of the columns `source`, `editor`, `judge` and `license`.
        source_sides: Histogram of the longer side of the sources, by upper limit in pixels.
        target_sides: The same for the targets.
        same_size: Rows whose source and target have the same size.
        same_shape: Rows whose source and target have the same aspect ratio, to 2 %.
        examples: The first row of every category, without its images.
    """

    config: str
    rows: dict[str, int] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)
    origins: dict[str, Counter[str]] = field(default_factory=dict)
    source_sides: Counter[str] = field(default_factory=Counter)
    target_sides: Counter[str] = field(default_factory=Counter)
    same_size: int = 0
    same_shape: int = 0
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of rows of all splits."""
        return sum(self.rows.values())

    def share(self, category: str) -> float:
        """Percent of the rows in a category."""
        return 100 * self.categories[category] / max(self.total, 1)

    def take(self, row: dict[str, Any]) -> None:
        """Counts one row."""
        number = row["task_category"]
        category = UNKNOWN if number is None else TASK_CATEGORIES[number]
        self.categories[category] += 1
        self.examples.setdefault(category, row)
        for column in ("source", "editor", "judge", "license"):
            self.origins.setdefault(column, Counter())[row[column] or UNKNOWN] += 1
        source, target = row["source_size"], row["target_size"]
        self.source_sides[_side(source)] += 1
        self.target_sides[_side(target)] += 1
        self.same_size += source == target
        self.same_shape += abs(source[0] * target[1] / (source[1] * target[0]) - 1) < 0.02


def parquet_files(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of a built data set by configuration and split.

    Raises:
        ValueError: If there are none.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    built = {file.parent.name for split in SPLITS for file in folder.glob(f"[!.]*/{split}-*.parquet")}
    for config in in_order(built):
        for file in sorted((folder / config).glob("*.parquet")):
            found.setdefault(config, {}).setdefault(file.name.partition("-")[0], []).append(file)
    if not found:
        raise ValueError(
            f"There is no built data set in {folder}: expected Parquet files such as {CONFIGS[0]}/train-*.parquet; "
            "make them with `uniedit dataset build`."
        )
    return found


def missing_files(folder: Path) -> list[str]:
    """Missing files of a built data set, inferred from the names of the others (`...-of-00290`)."""
    missing = []
    for config, splits in parquet_files(folder).items():
        for split, files in splits.items():
            totals = {int(file.stem.rpartition("-of-")[2]) for file in files if "-of-" in file.stem}
            expected = {f"{split}-{number:05d}-of-{total:05d}.parquet" for total in totals for number in range(total)}
            missing += [f"{config}/{name}" for name in sorted(expected - {file.name for file in files})]
    return missing


def statistics(folder: Path) -> list[Statistics]:
    """Counts every configuration of a built data set.

    Raises:
        ValueError: If there is no built data set.
    """
    counted = []
    for config, splits in parquet_files(folder).items():
        result = Statistics(config)
        for split, files in splits.items():
            result.rows[split] = sum(pq.read_metadata(file).num_rows for file in files)
            result.num_bytes[split] = sum(file.stat().st_size for file in files)
            for file in files:
                for row in rows_without_images(file):
                    result.take(row)
        counted.append(result)
    return counted


def rows_without_images(file: Path):
    """The rows of a Parquet file with all columns except the images."""
    with pq.ParquetFile(file) as parquet:
        columns = [name for name in parquet.schema_arrow.names if name not in IMAGES]
        for batch in parquet.iter_batches(columns=columns):
            yield from batch.to_pylist()


def _side(size: list[int]) -> str:
    upper = next((side for side in SIDES if max(size) <= side), None)
    return f"up to {upper}" if upper else f"over {SIDES[-1]}"
