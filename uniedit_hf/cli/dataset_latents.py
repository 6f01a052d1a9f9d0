"""`uniedit dataset latents`: precomputes what a BAGEL's frozen encoders make of the images, and stores it with the
data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from uniedit_hf.cli.option_types import Count

from .encoding import EncodingOptions, load_encoder, new_folder, write


@dataclass
class DatasetLatentsOptions(EncodingOptions):
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "dtype of the stored tensors; 16 bits take half the space and round"}
    )
    vit_features: bool = field(
        default=True, metadata={"help": "also store the ViT features of source images, several MB each"}
    )
    vit_longest_edge: Count | None = field(
        default=None, metadata={"help": "longest side of the ViT view in pixels, as training will use it"}
    )


def run(options: DatasetLatentsOptions) -> None:
    folder = new_folder(options.output_dir)

    import torch

    from uniedit_hf.models.bagel import BagelForConditionalGeneration
    from uniedit_hf.models.bagel.stored_views import store_views

    otherwise = "no latents: name a BAGEL, or use `uniedit dataset tokens` for a Janus-Pro."
    pipe, rows = load_encoder(options, BagelForConditionalGeneration, otherwise)
    edge, processor = options.vit_longest_edge, pipe.processor
    processor = processor if edge is None else processor.with_vit_longest_edge(edge)
    stored = store_views(rows, pipe.model, processor, getattr(torch, options.dtype), options.vit_features)
    write(stored, folder, options.dataset_split)
    print(f"Wrote {len(stored)} rows with the latents of {pipe.model.view_encoders['vae']} to {folder}")
