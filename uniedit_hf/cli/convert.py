"""`uniedit convert`: a checkpoint from one layout to another."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from uniedit_hf.cli.option_types import OutputDir


@dataclass
class ConvertOptions:
    input_dir: str = field(metadata={"help": "the checkpoint, in any of the layouts", "metavar": "FOLDER"})
    output_dir: OutputDir = field(metadata={"help": "folder for the converted checkpoint", "metavar": "FOLDER"})
    to: Literal["official", "transformers"] = field(
        metadata={"help": "the layout to write; Janus-Pro can only be converted to that of transformers"}
    )


def run(options: ConvertOptions) -> None:
    from uniedit_hf.models.loading import OFFICIAL_JANUS
    from uniedit_hf.registration import JANUS
    from uniedit_hf.training.sharded_state import consolidate, is_sharded_checkpoint

    if is_sharded_checkpoint(options.input_dir):
        if options.to != "transformers":
            raise ValueError(
                f"input_dir {options.input_dir} is a checkpoint of shares, which become one model in the layout of "
                "transformers: convert to 'transformers' first, and that to 'official'."
            )
        consolidate(options.input_dir, options.output_dir)
        print(f"Wrote {options.output_dir} in the {options.to} layout.")
        return

    config = Path(options.input_dir, "config.json")
    model_type = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    if model_type == OFFICIAL_JANUS and options.to == "transformers":
        from uniedit_hf.models.janus.conversion_janus import convert_official

        convert_official(options.input_dir, options.output_dir)
    elif model_type in (JANUS, OFFICIAL_JANUS):
        raise ValueError(
            f"input_dir {options.input_dir} holds a Janus-Pro of the model_type {model_type!r}, which is not written "
            f"in the {options.to} layout: 'multi_modality' is converted to 'transformers', and 'janus' already is."
        )
    else:
        from uniedit_hf.models.bagel.layouts_bagel import convert

        convert(options.input_dir, options.output_dir, options.to)
    print(f"Wrote {options.output_dir} in the {options.to} layout.")
