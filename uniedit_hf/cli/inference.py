"""The shared part of `uniedit edit`, `ask` and `generate`: load a model once, run over one input or many, write
results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from uniedit_hf.cli.option_types import Count, Seed
from uniedit_hf.files import written_file
from uniedit_hf.images import image_size
from uniedit_hf.release.raw import IMAGE_SUFFIXES


@dataclass
class InferenceOptions:
    model: str = field(metadata={"help": "folder or Hub id of the model", "metavar": "NAME"})
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "dtype of the weights; auto is bfloat16 on CUDA and float32 elsewhere"}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "load the decoder's weights in 4 bits (nf4), for a 24 GB card"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, mps or cpu; a GPU if there is one by default"}
    )
    batch_size: Count = field(default=8, metadata={"help": "inputs processed in one batch"})


@dataclass
class DrawingOptions(InferenceOptions):
    seed: Seed = field(default=0, metadata={"help": "seed of the noise; the n-th input takes seed + n"})
    size: list[Count] | None = field(
        default=None, metadata={"help": "width and height of the result in pixels", "metavar": "N"}
    )
    settings: dict | str | None = field(
        default=None,
        metadata={"help": "JSON of further settings, such as '{\"num_timesteps\": 25}'", "metavar": "JSON"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace results that exist"})

    def __post_init__(self):
        if self.size is not None and len(self.size) != 2:
            raise ValueError(f"size has {len(self.size)} numbers: give width and height, as in --size 1024 768.")
        try:
            self.settings = json.loads(self.settings) if isinstance(self.settings, str) else self.settings or {}
        except json.JSONDecodeError as error:
            raise ValueError(f"settings is {self.settings!r}, which is not JSON ({error}).") from error
        if not isinstance(self.settings, dict):
            raise ValueError(f"settings is {self.settings!r}, but must be a JSON object of names and values.")

    def drawing(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Arguments of the pipeline for the inputs with these numbers."""
        seeds = [self.seed + number for number in numbers]
        return {"seed": seeds, **({"size": tuple(self.size)} if self.size else {}), **self.settings}


def load_pipeline(options: InferenceOptions):
    """The pipeline on its device."""
    from uniedit_hf import UniEditPipeline
    from uniedit_hf.arithmetic import inference_arithmetic
    from uniedit_hf.training.quantization import quantized_weights

    device, dtype = inference_arithmetic(options.device, options.dtype)
    if options.load_in_4bit:
        placing = {"quantization_config": quantized_weights(4, dtype), "device_map": device}
        return UniEditPipeline.from_pretrained(options.model, options.batch_size, dtype=dtype, **placing)
    return UniEditPipeline.from_pretrained(options.model, options.batch_size, dtype=dtype).to(device)


def input_images(path: str) -> list[Path]:
    """An image file, or all images in a folder, sorted by name.

    Raises:
        OSError: If there is no such file, or no image in the folder.
        ImageError: If a file is not an image, before a model is loaded.
    """
    place = Path(path)
    if place.is_file():
        image_size(place)
        return [place]
    if not place.is_dir():
        raise OSError(f"There is no file or folder {path}: name an image, or a folder of images.")
    found = sorted(each for each in place.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise OSError(f"The folder {path} contains no images: expected files such as NAME.png or NAME.jpg.")
    for each in found:
        image_size(each)
    return found


def output_files(output: str, names: Sequence[str], many: bool, overwrite: bool) -> list[Path]:
    """Output path of each result: a file for one input, a folder for many.

    Raises:
        OSError: If a result exists, or the folder cannot be written.
    """
    place = Path(output)
    paths = [place / f"{name}.png" for name in names] if many or place.is_dir() else [place]
    if paths == [place] and place.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"output is {output}: name an image file such as edited.png, or a folder that exists.")
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise OSError(f"{existing[0]} exists: choose another output, or pass --overwrite true.")
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    return paths


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image in the format that its name ends with."""
    with written_file(path) as part:
        image.save(part, Image.registered_extensions()[path.suffix.lower()])


def in_batches(paths: Sequence[Any], size: int) -> Iterable[tuple[list[int], list[Any]]]:
    """Numbers and items, `size` at a time, with a progress bar where there are several batches."""
    from tqdm import tqdm

    for start in tqdm(range(0, len(paths), size), disable=len(paths) <= size, unit="batch"):
        chosen = list(paths[start : start + size])
        yield list(range(start, start + len(chosen))), chosen
