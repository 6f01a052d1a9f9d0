"""`uniedit dataset latents`: what a BAGEL's frozen encoders make of images, stored with a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .dataset_tokens import new_folder, write


@dataclass
class DatasetLatentsOptions:
    dataset_name: str = field(metadata={"help": "Hub id or folder of the data", "metavar": "NAME"})
    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the BAGEL", "metavar": "NAME"})
    output_dir: str = field(metadata={"help": "a new folder for the same rows with latents", "metavar": "FOLDER"})
    dataset_config: str | None = field(default=None, metadata={"help": "a configuration of it", "metavar": "NAME"})
    dataset_split: str = field(default="train", metadata={"help": "the split to encode", "metavar": "NAME"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of what is stored; 16 bits take half and round"}
    )
    vit_features: bool = field(default=True, metadata={"help": "also store features of sources, several MB each"})
    vit_longest_edge: int | None = field(
        default=None, metadata={"help": "longest side of the ViT view in pixels, as training will use it"}
    )


def run(options: DatasetLatentsOptions) -> None:
    folder = new_folder(options.output_dir)

    import torch

    from uniedit_hf.hub import load_split
    from uniedit_hf.models.bagel import BagelForConditionalGeneration
    from uniedit_hf.models.bagel.stored_views import store_views
    from uniedit_hf.pipeline import UniEditPipeline

    pipe = UniEditPipeline.from_pretrained(options.model_name_or_path)
    if not isinstance(pipe.model, BagelForConditionalGeneration):
        raise ValueError(
            f"{options.model_name_or_path} is a {type(pipe.model).__name__}, which has no latents: name a BAGEL, or "
            "use `uniedit dataset tokens` for a Janus-Pro."
        )
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_split(options.dataset_name, options.dataset_config, options.dataset_split)
    edge, processor = options.vit_longest_edge, pipe.processor
    processor = processor if edge is None else processor.with_vit_longest_edge(edge)
    stored = store_views(rows, pipe.model, processor, getattr(torch, options.dtype), options.vit_features)
    write(stored, folder, options.dataset_split)
    print(f"Wrote {len(stored)} rows with the latents of {pipe.model.view_encoders['vae']} to {folder}")
