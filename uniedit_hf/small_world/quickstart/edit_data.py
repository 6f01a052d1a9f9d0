"""Edits of easy-VQA's training images, as data sets on disk: intelligent ones, the same with a plan in place of the
instruction, and plain ones of the same images. Each is a run of `uniedit synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, Image, load_dataset

from uniedit_hf.small_world.asking import AskingStyle
from uniedit_hf.small_world.contact_sheet import contact_sheet
from uniedit_hf.small_world.edits import Shares
from uniedit_hf.synthesis.run import run as synthesize
from uniedit_hf.synthesis.settings import Settings, settings_from
from uniedit_hf.synthesis.writer import Merged


CHOICES = ("depth", "condition", "changed", "edit")
ROWS_PER_FILE = 10_000
EDIT_KINDS = ("intelligent", "plain", "thinking")
BY_RULES = {
    "decontaminate": {"near_duplicates": False},  # images of single flat shapes look alike
    "instruct": {"backend": "rules"},
    "screen": {"similarity": None},
    "edit": {"backend": "exact"},
    "verify": {"judge": "rules"},
    "export": {"rows_per_file": ROWS_PER_FILE},
}


def make_edits(folder: Path, *, seed: int, size: int) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Makes `intelligent`, `plain` and `thinking` edits, each in its own folder with `dataset/`, `report.html`,
    `rejects.parquet` and `contact_sheet.png`, and loads them as a user would.

    Returns:
        The data sets by name, and the counts of each.
    """
    intelligent = intelligent_settings(folder / "intelligent", seed=seed, size=size)
    plain = plain_settings(folder / "plain", seed=seed, of=data_folder(folder, "intelligent"))
    thinking = intelligent_settings(folder / "thinking", seed=seed, size=size, asking="thinking")
    datasets, counts = {}, {}
    for name, settings in zip(EDIT_KINDS, (intelligent, plain, thinking)):
        merged = synthesize(settings)
        datasets[name] = load_edits(folder, name)
        counts[name] = _counts(merged, datasets[name])
        contact_sheet(datasets[name]).save(folder / name / "contact_sheet.png")
    return datasets, counts


def intelligent_settings(folder: Path, *, seed: int, size: int, asking: AskingStyle = "question") -> Settings:
    """A run that makes intelligent edits in the shares of `Shares`."""
    shares = Shares()
    instruct = {
        "depths": dict(shares.depths),
        "false_conditions": shares.false_conditions,
        "unchanged": shares.unchanged,
    }
    return _settings(
        folder,
        seed,
        source={"kind": "planned_edits", "asking": asking},
        balance={"size": size, "shares": dict(shares.categories)},
        instruct=BY_RULES["instruct"] | instruct,
    )


def plain_settings(folder: Path, *, seed: int, of: Path) -> Settings:
    """A run that makes a plain edit of every image of a data set."""
    return _settings(folder, seed, source={"kind": "plain_edits", "of": of})


def data_folder(folder: Path, name: str) -> Path:
    """The folder of the data set of that name."""
    return folder / name / "dataset"


def load_edits(folder: Path, name: str) -> Dataset:
    """The data set of that name."""
    return load_dataset(str(data_folder(folder, name)), split="train")


def _settings(folder: Path, seed: int, **sections: Any) -> Settings:
    return settings_from(BY_RULES | sections | {"output_dir": folder, "seed": seed}, "the small world's settings")


def _counts(merged: Merged, dataset: Dataset) -> dict[str, Any]:
    """Edits and rejections, and edits by category, source and each choice that was drawn."""
    counts = merged.counts
    sources = dataset.cast_column("source_image", Image(decode=False))["source_image"]
    choices = {name: counts.by_column[name] for name in CHOICES if name in counts.by_column}
    return {
        "records": counts.records,
        "source_images": len({source["bytes"] for source in sources}),
        "category": dict(sorted(counts.by_column["category"].items())),
        "source": dict(sorted(counts.by_column["source"].items())),
        "variant": {name: dict(sorted(each.items())) for name, each in choices.items()},
        "rejections": counts.rejects,
        "rejection_reasons": dict(sorted((reason, number) for (_, reason), number in counts.by_reason.items())),
    }
