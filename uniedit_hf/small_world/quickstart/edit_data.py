"""Edits of easy-VQA's training pictures, as data sets on disk: intelligent ones to tune on, and plain ones of the same
pictures for the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import plain_counterpart, synthesize
from uniedit_hf.small_world.output import write_parquet
from uniedit_hf.synthesis.records import Record


def make_edits(folder: Path, *, seed: int, size: int) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Writes `intelligent` and `plain` edits as Parquet, each with a summary and a contact sheet, and loads them as a
    user would.

    Returns:
        The data sets by name, and the counts of each.
    """
    intelligent = list(synthesize(load_easy_vqa("train"), seed=seed, size=size))
    plain = [plain_counterpart(record, seed=seed) for record in intelligent if isinstance(record, Record)]
    summaries, datasets = {}, {}
    for name, results in (("intelligent", intelligent), ("plain", plain)):
        summaries[name] = write_parquet(results, folder / name)
        datasets[name] = load_dataset(str(folder / name), split="train")
    return datasets, summaries
