"""`uniedit quickstart`: the whole method once, on a laptop."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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
# What was made, where the page is, and what to run next on one's own data.
FINISHED = (
    "Made in {minutes:.1f} minutes: {edits:,} intelligent edits in {folder}/data, tuned model in {folder}/model.\n"
    "Open {page} for the result, or try both models in the browser: uniedit demo{models}\n"
    "Your own data: uniedit train --model_name_or_path {base} --dataset_name rows.csv --output_dir runs/own; "
    "docs/own_data.md says what a row needs."
)


def run(options: QuickstartOptions) -> None:
    from uniedit_hf.small_world import quickstart

    begun = time.perf_counter()
    print(FIRST, flush=True)  # importing PyTorch takes seconds
    try:
        finished = quickstart.run(say=partial(print, flush=True), **vars(options))
    except KeyboardInterrupt:
        print(f"Stopped; the same command resumes the run in {options.output_dir}.", file=sys.stderr)
        raise
    print(finished.verdict)
    print(said_at_the_end(options, str(finished.page), (time.perf_counter() - begun) / 60))


def said_at_the_end(options: QuickstartOptions, page: str, minutes: float) -> str:
    """Three lines: the models that were made, where the page is, and the command to run next on one's own data."""
    from uniedit_hf.cli.demo import QUICKSTART
    from uniedit_hf.small_world.quickstart.tuning import base_folder

    base, folder = base_folder(options.base, options.model), options.output_dir
    models = "" if Path(folder) == QUICKSTART else f" --base {base} --tuned {folder}/model"
    return FINISHED.format(minutes=minutes, edits=options.edits, folder=folder, page=page, base=base, models=models)
