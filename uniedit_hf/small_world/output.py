"""Writes records as a data set: Parquet in the row schema, a summary of what was kept and rejected, and a contact
sheet to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from uniedit_hf.schema import row_features
from uniedit_hf.small_world.contact_sheet import contact_sheet
from uniedit_hf.synthesis.records import Record, Rejection, record_to_row, variant_choices


PARQUET_NAME = "train-00000-of-00001.parquet"
ROWS_PER_GROUP = 256
NO_CATEGORY = "no category"  # edits of size: the schema has none for them


def write_parquet(results: Iterable[Record | Rejection], folder: str | Path) -> dict[str, Any]:
    """Writes `train-00000-of-00001.parquet`, `summary.json` and `contact_sheet.png` into a folder, which
    `datasets.load_dataset` reads.

    Args:
        results: What a synthesis yields; rejections are counted.
        folder: Made if it is missing; files of the same names are replaced.

    Returns:
        The summary.

    Raises:
        ValueError: There is no record, or a record starts from a picture that is not of the training split.
    """
    records, rejections = [], []
    for result in results:
        (records if isinstance(result, Record) else rejections).append(result)
    if not records:
        raise ValueError(f"No record to write to {folder}: all {len(rejections)} rows were rejected.")
    for record in records:
        if record.split != "train":
            raise ValueError(
                f"Record {record.id} starts from a picture of the split {record.split!r}; only training pictures go "
                "into a training file."
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [record_to_row(record) for record in records]
    Dataset.from_list(rows, features=row_features()).to_parquet(folder / PARQUET_NAME, batch_size=ROWS_PER_GROUP)
    summary = summarize(records, rejections)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contact_sheet(records).save(folder / "contact_sheet.png")
    return summary


def summarize(records: Iterable[Record], rejections: Iterable[Rejection]) -> dict[str, Any]:
    """How many records there are in all, by category, by source and by each choice of `variant` except the phrasing,
    and how many rejections by reason."""
    records, rejections = list(records), list(rejections)
    choices: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in variant_choices(record.variant).items():
            if name != "phrasing":
                choices.setdefault(name, Counter())[value] += 1
    return {
        "records": len(records),
        "source_images": len({record.source_image for record in records}),
        "category": _counted(record.task_category or NO_CATEGORY for record in records),
        "source": _counted(record.source for record in records),
        "variant": {name: dict(sorted(counts.items())) for name, counts in choices.items()},
        "rejections": len(rejections),
        "rejection_reasons": _counted(rejection.reason for rejection in rejections),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
