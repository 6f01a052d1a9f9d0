"""Intelligent edits from easy-VQA's training pictures, as a data set on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from uniedit_hf.synthesis.easy_vqa import load_easy_vqa
from uniedit_hf.synthesis.output import write_parquet
from uniedit_hf.synthesis.pipeline import synthesize


NUM_EDITS = 4000


def make_edits(folder: Path, *, seed: int, size: int = NUM_EDITS) -> tuple[Dataset, dict[str, Any]]:
    """Writes the edits as Parquet, with a summary and a contact sheet, and loads them as a user would.

    Returns:
        The data set, and the counts of the summary.
    """
    summary = write_parquet(synthesize(load_easy_vqa("train"), seed=seed, size=size), folder)
    return load_dataset(str(folder), split="train"), summary
