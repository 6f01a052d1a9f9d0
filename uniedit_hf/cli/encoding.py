"""The shared part of `uniedit dataset tokens` and `uniedit dataset latents`: read rows, load the model whose encoders
process the images, and write the rows with the encoders' output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from uniedit_hf.cli.option_types import OutputDir
from uniedit_hf.files import written_folder


ROWS_PER_FILE = 2000


@dataclass
class EncodingOptions:
    dataset_name: str = field(metadata={"help": "Hub id or folder of the data set", "metavar": "NAME"})
    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the model", "metavar": "NAME"})
    output_dir: OutputDir = field(
        metadata={"help": "a new folder for the rows with what is stored", "metavar": "FOLDER"}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "configuration of the data set", "metavar": "NAME"}
    )
    dataset_split: str = field(default="train", metadata={"help": "the split to encode", "metavar": "NAME"})


def new_folder(name: str) -> Path:
    """A folder that does not exist yet, or is empty.

    Raises:
        ValueError: If it exists and is not empty.
    """
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} exists and is not empty: name a new folder.")
    return folder


def load_encoder(options: EncodingOptions, family: type, otherwise: str):
    """The pipeline of a model of this family, on its device, and the rows to encode.

    Raises:
        ValueError: If the model is of another family; `otherwise` says what it does not have and what to do.
    """
    from uniedit_hf.arithmetic import inference_arithmetic
    from uniedit_hf.hub import load_split
    from uniedit_hf.pipeline import UniEditPipeline

    pipe = UniEditPipeline.from_pretrained(options.model_name_or_path)
    if not isinstance(pipe.model, family):
        raise ValueError(f"{options.model_name_or_path} is a {type(pipe.model).__name__}, which has {otherwise}")
    pipe.to(inference_arithmetic()[0])
    return pipe, load_split(options.dataset_name, options.dataset_config, options.dataset_split)


def write(dataset, folder: Path, split: str) -> None:
    """Writes Parquet with all images inside, as `load_dataset(folder)` reads it. The folder appears only when it is
    complete.
    """
    from datasets.table import embed_table_storage

    files = max(1, math.ceil(len(dataset) / ROWS_PER_FILE))
    with written_folder(folder) as part:
        (part / "data").mkdir()
        for number in range(files):
            rows = dataset.shard(files, number, contiguous=True).with_format("arrow")
            whole = rows.map(embed_table_storage, batched=True, batch_size=100, desc="images").with_format(None)
            whole.to_parquet(str(part / "data" / f"{split}-{number:05}-of-{files:05}.parquet"))
