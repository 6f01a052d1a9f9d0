"""`uniedit quickstart`: the whole way once, on a laptop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class QuickstartOptions:
    output_dir: str = field(
        default="runs/quickstart",
        metadata={"help": "where the data, the model and the report go", "metavar": "FOLDER"},
    )
    model: Literal["bagel", "janus"] = field(default="bagel", metadata={"help": "the family of the small model"})
    steps: int = field(default=400, metadata={"help": "optimizer steps of each tuning"})
    seed: int = field(default=0, metadata={"help": "seed of the data and of the first tuning"})
    seeds: int = field(default=1, metadata={"help": "how many seeds to tune with; the report shows their mean"})
    edits: int = field(default=3000, metadata={"help": "intelligent edits to make, and as many plain ones"})
    items: int = field(default=100, metadata={"help": "test items of each kind; at 100, each ability has 200"})
    base: str | None = field(
        default=None,
        metadata={"help": "folder of the model to tune; the project's own if not given", "metavar": "FOLDER"},
    )


def run(options: QuickstartOptions) -> None:
    from uniedit_hf.small_world import quickstart

    page = quickstart.run(
        output_dir=options.output_dir,
        model=options.model,
        steps=options.steps,
        seed=options.seed,
        seeds=options.seeds,
        edits=options.edits,
        items=options.items,
        base=options.base,
    )
    print(f"Finished: open {page}")
