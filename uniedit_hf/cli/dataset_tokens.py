"""`uniedit dataset tokens`: precomputes the image tokens of a Janus-Pro, and stores them with the data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniedit_hf.cli.option_types import Count

from .encoding import EncodingOptions, load_encoder, new_folder, write


@dataclass
class DatasetTokensOptions(EncodingOptions):
    batch_size: Count = field(default=16, metadata={"help": "images encoded at once"})


def run(options: DatasetTokensOptions) -> None:
    folder = new_folder(options.output_dir)

    from uniedit_hf.models.janus import JanusForConditionalGeneration
    from uniedit_hf.models.janus.image_tokens import store_image_tokens

    pipe, rows = load_encoder(options, JanusForConditionalGeneration, "no image tokens: name a Janus-Pro.")
    stored = store_image_tokens(rows, pipe.model, pipe.processor, options.batch_size)
    write(stored, folder, options.dataset_split)
    print(f"Wrote {len(stored)} rows with the tokens of {pipe.model.image_tokenizer} to {folder}")
