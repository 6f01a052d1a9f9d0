"""`uniedit convert`: a BAGEL checkpoint from one layout to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ConvertOptions:
    input_dir: str = field(metadata={"help": "the checkpoint, in any of the layouts", "metavar": "FOLDER"})
    output_dir: str = field(metadata={"help": "where the converted checkpoint goes", "metavar": "FOLDER"})
    to: Literal["official", "transformers"] = field(metadata={"help": "the layout to write"})


def run(options: ConvertOptions) -> None:
    from uniedit_hf.models.bagel.conversion import convert

    convert(options.input_dir, options.output_dir, options.to)
    print(f"Wrote {options.output_dir} in the {options.to} layout.")
