"""`uniedit quickstart`: the whole method once, on a laptop."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from uniedit_hf.cli.option_types import Count, OutputDir, Seed


@dataclass
class QuickstartOptions:
    output_dir: OutputDir = field(
        default="runs/quickstart",
        metadata={"help": "folder for the data, the model and the report", "metavar": "FOLDER"},
    )
    model: Literal["bagel", "janus"] = field(default="bagel", metadata={"help": "the family of the small model"})
    steps: Count = field(default=400, metadata={"help": "optimizer steps of each tuning run"})
    seed: Seed = field(default=0, metadata={"help": "seed of the data and of the first tuning run"})
    seeds: Count = field(default=1, metadata={"help": "number of seeds to tune with; the report shows the mean"})
    edits: Count = field(default=3000, metadata={"help": "number of intelligent edits to make, and of plain ones"})
    items: Count = field(default=100, metadata={"help": "test items of each kind; at 100, each ability has 200"})
    base: str | None = field(
        default=None,
        metadata={"help": "folder of the model to tune; the project's small base by default", "metavar": "FOLDER"},
    )
    jobs: Count | None = field(
        default=None, metadata={"help": "models to tune in parallel; 2 by default on a CPU with two cores"}
    )


FIRST = (
    "The quickstart makes edits, tunes a small model twice and measures it: 2 to 5 minutes on two cores with 16-bit "
    "arithmetic, up to 10 without. Checking this machine ..."
)
NEXT = """What to run next:
  uniedit demo                                   base and tuned model side by side in the browser
  uniedit quickstart --steps {longer:<5} --seeds 3   a longer tuning, three seeds
  uniedit train --help                           your own data and model"""


def run(options: QuickstartOptions) -> None:
    from uniedit_hf.small_world import quickstart

    begun = time.perf_counter()
    print(FIRST, flush=True)  # importing PyTorch takes seconds
    try:
        finished = quickstart.run(say=partial(print, flush=True), **vars(options))
    except KeyboardInterrupt:
        print(f"Stopped; the same command resumes the run in {options.output_dir}.", file=sys.stderr)
        raise
    minutes = (time.perf_counter() - begun) / 60
    print(f"{finished.verdict}\nFinished in {minutes:.1f} minutes: open {finished.page}")
    print(NEXT.format(longer=3 * options.steps))
