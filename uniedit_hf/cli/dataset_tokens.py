"""`uniedit dataset tokens`: the image tokens of a Janus-Pro, stored with a data set."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path


ROWS_PER_FILE = 2000


@dataclass
class DatasetTokensOptions:
    dataset_name: str = field(metadata={"help": "Hub id or folder of the data", "metavar": "NAME"})
    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the Janus-Pro", "metavar": "NAME"})
    output_dir: str = field(metadata={"help": "a new folder for the same rows with tokens", "metavar": "FOLDER"})
    dataset_config: str | None = field(default=None, metadata={"help": "a configuration of it", "metavar": "NAME"})
    dataset_split: str = field(default="train", metadata={"help": "the split to encode", "metavar": "NAME"})
    batch_size: int = field(default=16, metadata={"help": "images that are encoded together"})


def new_folder(name: str) -> Path:
    """A folder that is not there, or empty.

    Raises:
        ValueError: If something is in its place.
    """
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is there and not empty: name a new folder.")
    return folder


def run(options: DatasetTokensOptions) -> None:
    folder = new_folder(options.output_dir)
    if options.batch_size < 1:
        raise ValueError(f"--batch_size is {options.batch_size}: use 1 or more.")

    import torch

    from uniedit_hf.hub import load_split
    from uniedit_hf.models.janus import JanusForConditionalGeneration
    from uniedit_hf.models.janus.image_tokens import store_image_tokens
    from uniedit_hf.pipeline import UniEditPipeline

    pipe = UniEditPipeline.from_pretrained(options.model_name_or_path)
    if not isinstance(pipe.model, JanusForConditionalGeneration):
        raise ValueError(
            f"{options.model_name_or_path} is a {type(pipe.model).__name__}, which has no image tokens: name a "
            "Janus-Pro."
        )
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_split(options.dataset_name, options.dataset_config, options.dataset_split)
    stored = store_image_tokens(rows, pipe.model, pipe.processor, options.batch_size)
    write(stored, folder, options.dataset_split)
    print(f"Wrote {len(stored)} rows with the tokens of {pipe.model.image_tokenizer} to {folder}")


def write(dataset, folder: Path, split: str) -> None:
    """Parquet with all images inside, as `load_dataset(folder)` reads it. The folder appears when it is complete."""
    from datasets.table import embed_table_storage

    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "data").mkdir(parents=True)
    files = max(1, math.ceil(len(dataset) / ROWS_PER_FILE))
    for number in range(files):
        part = dataset.shard(files, number, contiguous=True).with_format("arrow")
        whole = part.map(embed_table_storage, batched=True, batch_size=100, desc="images").with_format(None)
        whole.to_parquet(str(unfinished / "data" / f"{split}-{number:05}-of-{files:05}.parquet"))
    unfinished.replace(folder)
