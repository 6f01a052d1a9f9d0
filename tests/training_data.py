"""Data and checkpoints for tests of training: real rows, real files, a tiny model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from tiny_models import FAMILIES, WORDS, picture

from uniedit_hf.training import UniEditConfig, UniEditTrainer
from uniedit_hf.training.meters import LOGGED


SIZES = ((32, 32), (48, 32), (64, 48), (32, 64))
IMAGE_SIZE = List(Value("int32"), length=2)
EDIT_FEATURES = {
    "id": Value("string"),
    "source_image": Image(),
    "instruction": Value("string"),
    "target_image": Image(),
    "thinking": Value("string"),
    "question": Value("string"),
    "answer": Value("string"),
    "source_size": IMAGE_SIZE,
    "target_size": IMAGE_SIZE,
}
TURN = {
    "role": Value("string"),
    "text": Value("string"),
    "image": Image(),
    "size": IMAGE_SIZE,
    "loss": Value("bool"),
}
CONVERSATION_FEATURES = {"id": Value("string"), "turns": List(TURN)}


def png(size: tuple[int, int], seed: int) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    file = BytesIO()
    picture(*size, seed=seed).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def words(number: int, count: int) -> str:
    """Some of the tiny tokenizer's words."""
    return " ".join(WORDS[(number + 3 * i) % len(WORDS)] for i in range(count))


def edit_row(number: int, **changes) -> dict[str, Any]:
    """A row of the data set's schema, a function of its number."""
    source, target = SIZES[number % 4], SIZES[(number // 2) % 4]
    row = {
        "id": f"row-{number}",
        "source_image": png(source, number),
        "instruction": words(number, 3 + number % 5),
        "target_image": png(target, 1000 + number),
        "thinking": words(number, 2) if number % 3 == 0 else None,
        "question": words(number, 4),
        "answer": words(number, 1 + number % 2),
        "source_size": list(source),
        "target_size": list(target),
    }
    return row | changes


def edit_rows(count: int = 24, **changes) -> Dataset:
    """Rows for the recipes `edit`, `answer` and `generate`.

    Args:
        count: How many.
        changes: Columns to set alike in all of them.
    """
    return dataset_of([edit_row(number, **changes) for number in range(count)])


def dataset_of(rows: Sequence[dict[str, Any]]) -> Dataset:
    """Rows as a data set; columns that are missing in the first row are left out."""
    return Dataset.from_list(list(rows), Features({name: EDIT_FEATURES[name] for name in rows[0]}))


def conversation_row(number: int) -> dict[str, Any]:
    """Two images that are drawn, and between them a text that is written."""
    first, second = SIZES[number % 4], SIZES[(number + 1) % 4]
    empty = dict.fromkeys(TURN)
    turns = [
        {"role": "user", "image": png(first, number), "size": list(first)},
        {"role": "user", "text": words(number, 3)},
        {"role": "assistant", "image": png(second, 500 + number), "size": list(second)},
        {"role": "assistant", "text": words(number, 2)},
        {"role": "assistant", "image": png(first, 900 + number), "size": list(first)},
    ]
    return {"id": f"talk-{number}", "turns": [empty | turn for turn in turns]}


def conversations(count: int = 8) -> Dataset:
    """Rows for the recipe `interleaved`."""
    return Dataset.from_list([conversation_row(number) for number in range(count)], Features(CONVERSATION_FEATURES))


def save_parquet(dataset: Dataset, folder: Path, num_files: int = 1) -> Path:
    """The data set as a folder of Parquet files that `load_dataset` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_files):
        dataset.shard(num_files, index).to_parquet(str(folder / f"train-{index:05d}.parquet"))
    return folder


def save_csv(rows: Dataset, folder: Path) -> Path:
    """Edits as `rows.csv` and a folder of the images that it names, as a user would have them."""
    (folder / "images").mkdir(parents=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "source_image", "instruction", "target_image"])
        table.writeheader()
        for row in rows:
            names = {side: f"images/{row['id']}-{side}.png" for side in ("source_image", "target_image")}
            for side, name in names.items():
                row[side].save(folder / name)
            table.writerow({"id": row["id"], "instruction": row["instruction"], **names})
    return folder / "rows.csv"


def save_checkpoint(folder: Path, family: str = "bagel") -> Path:
    """A tiny model with its processor, as `from_pretrained` reads it."""
    FAMILIES[family].model().save_pretrained(folder)
    FAMILIES[family].processor().save_pretrained(folder)
    return folder


def settings(folder: Path, family: str = "bagel", **changes) -> UniEditConfig:
    """A short run on the CPU that logs every step."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-3,
        "max_tokens_per_pack": 120,
        "packing_window": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return UniEditConfig(**defaults | FAMILIES[family].settings | changes)


def trainer(
    folder: Path, train_dataset, model=None, eval_dataset=None, peft_config=None, family: str = "bagel", **changes
) -> UniEditTrainer:
    """A trainer of the tiny model of a family."""
    return UniEditTrainer(
        FAMILIES[family].model() if model is None else model,
        settings(folder, family, **changes),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=FAMILIES[family].processor(),
        peft_config=peft_config,
    )


def curve(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The logs of the steps without what depends on the clock."""
    clock = ("tokens_per_second", "samples_per_second", "data_wait_seconds", *LOGGED)
    return [{name: value for name, value in log.items() if name not in clock} for log in log_history if "loss" in log]
