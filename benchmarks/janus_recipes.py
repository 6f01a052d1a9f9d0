"""Compares ways to show Janus-Pro the source of an edit: conditioning x dropout, over seeds, on the small model.

    python -m benchmarks.janus_recipes

Every recipe tunes the same base on the same edits, intelligent and plain, and is measured on other edits of training
images, so that the test images stay unseen by the choice. Finished parts are kept, and a stopped run resumes.
Prints a table in Markdown: the mean of the seeds and their range, in percent.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from datasets import concatenate_datasets, load_dataset

from uniedit_hf.images import open_image
from uniedit_hf.models.janus.image_tokens import store_image_tokens
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import intelligent_edits, plain_edits
from uniedit_hf.small_world.quickstart.edit_data import make_edits
from uniedit_hf.small_world.quickstart.tuning import base_folder, tune
from uniedit_hf.small_world.scoring import score_edit
from uniedit_hf.small_world.suite import EDIT_SETTINGS
from uniedit_hf.synthesis.records import Record


RECIPES = {
    "siglip": {"source_views": ["siglip"], "full_dropout": 0.0},
    "siglip, all dropped 5 %": {"source_views": ["siglip"], "full_dropout": 0.05},
    "vq": {"source_views": ["vq"], "drawing_dropout": 0.0, "full_dropout": 0.0},
    "vq, all dropped 5 %": {"source_views": ["vq"], "drawing_dropout": 0.0, "full_dropout": 0.05},
    "both": {"drawing_dropout": 0.0, "full_dropout": 0.0},
    "both, vq dropped 50 %": {"drawing_dropout": 0.5, "full_dropout": 0.0},
    "both, vq dropped 50 %, all dropped 5 %": {"drawing_dropout": 0.5, "full_dropout": 0.05},
}
ITEM_SEED = 20260522
LEARNING_RATE = 3e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", help="folder of the model to tune; the project's small base by default")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/janus_recipes"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--edits", type=int, default=3000, help="intelligent and as many plain ones")
    parser.add_argument("--items", type=int, default=100, help="plain and as many intelligent edits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    options = parser.parse_args()
    options.base = base_folder(options.base, "janus")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    results = options.output_dir / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["recipe"], line["seed"]): line for line in known}
    data = options.output_dir / "edits.parquet"
    if not data.exists():
        write_edits(options, data)
    runs = [(recipe, seed) for seed, recipe in itertools.product(range(options.seeds), options.recipes)]
    runs = [run for run in runs if run not in done]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        for line in processes.map(functools.partial(tune_and_measure, options, data), runs):
            done[line["recipe"], line["seed"]] = line
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(done))


def write_edits(options: argparse.Namespace, data: Path) -> None:
    """Intelligent edits and plain ones of the same images, half each, with the base's image tokens."""
    pipe = UniEditPipeline.from_pretrained(options.base)
    edits, _ = make_edits(options.output_dir / "data", seed=0, size=options.edits)
    stored = [store_image_tokens(each, pipe.model, pipe.processor, batch_size=50) for each in edits.values()]
    concatenate_datasets(stored).to_parquet(str(data))


def tune_and_measure(options: argparse.Namespace, data: Path, run: tuple[str, int]) -> dict:
    """One recipe with one seed, from edits whose tokens are stored."""
    recipe, seed = run
    torch.set_num_threads(1)
    settings, folder = RECIPES[recipe], options.output_dir / f"{list(RECIPES).index(recipe)}-{seed}"
    edits = load_dataset("parquet", data_files=str(data), split="train", cache_dir=str(options.output_dir / "cache"))
    tune(options.base, edits, folder, steps=options.steps, seed=seed, learning_rate=LEARNING_RATE, **settings)
    line = {"recipe": recipe, "seed": seed} | measure(folder, settings, options.items)
    shutil.rmtree(folder)
    return line


def measure(folder: Path, settings: dict, count: int) -> dict[str, float]:
    """The share of right edits from the views that the model was tuned with, plain and intelligent."""
    pipe = UniEditPipeline.from_pretrained(folder, batch_size=50)
    views = settings.get("source_views", pipe.processor.source_views)
    rows = load_easy_vqa("train")
    shares = {}
    for kind, make in (("plain", plain_edits), ("intelligent", intelligent_edits)):
        records = [each for each in make(rows, seed=ITEM_SEED, size=count) if isinstance(each, Record)]
        sources = [open_image(record.source_image) for record in records]
        targets = [open_image(record.target_image) for record in records]
        texts, seeds = [record.instruction for record in records], list(range(len(records)))
        drawn = pipe.edit(sources, texts, seed=seeds, source_views=views, **EDIT_SETTINGS["janus"])
        shares[kind] = float(np.mean([score_edit(*each).right for each in zip(drawn, sources, targets)]))
    return shares


def table(done: dict[tuple[str, int], dict]) -> str:
    """The means over seeds, with the least and the greatest."""
    lines = ["| recipe | seeds | plain edits | intelligent edits |", "|---|---|---|---|"]
    for recipe in RECIPES:
        found = [line for (name, _), line in done.items() if name == recipe]
        cells = []
        for kind in ("plain", "intelligent"):
            values = [100 * line[kind] for line in found]
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {recipe} | {len(found)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
