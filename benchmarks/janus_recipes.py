"""How Janus-Pro is best shown the source of an edit: conditioning x dropout, over seeds, on the small model.

    python benchmarks/janus_recipes.py --base runs/small_world/janus/model --output_dir runs/janus_recipes

Every recipe tunes the same base on the same edits and is measured on other edits of training pictures, so that the
test pictures stay unseen by the choice. What is finished is kept, and a run that was stopped goes on.
Prints a table in Markdown: the mean of the seeds and their range, in percent.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from uniedit_hf.evaluation.scorers.small_world import score_edit
from uniedit_hf.evaluation.suites.small_world import EDIT_SETTINGS
from uniedit_hf.images import open_image
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.quickstart.data import make_edits
from uniedit_hf.quickstart.tuning import tune
from uniedit_hf.synthesis.easy_vqa import load_easy_vqa
from uniedit_hf.synthesis.pipeline import intelligent_edits, plain_edits
from uniedit_hf.synthesis.records import Record


RECIPES = {
    "siglip": {"source_views": ["siglip"], "full_dropout": 0.0},
    "siglip, all dropped 5 %": {"source_views": ["siglip"], "full_dropout": 0.05},
    "vq": {"source_views": ["vq"], "vae_dropout": 0.0, "full_dropout": 0.0},
    "vq, all dropped 5 %": {"source_views": ["vq"], "vae_dropout": 0.0, "full_dropout": 0.05},
    "both": {"vae_dropout": 0.0, "full_dropout": 0.0},
    "both, vq dropped 50 %": {"vae_dropout": 0.5, "full_dropout": 0.0},
    "both, vq dropped 50 %, all dropped 5 %": {"vae_dropout": 0.5, "full_dropout": 0.05},
}
ITEM_SEED = 20260522


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/janus_recipes"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--edits", type=int, default=3000)
    parser.add_argument("--items", type=int, default=100, help="plain and as many intelligent edits")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    results = options.output_dir / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["recipe"], line["seed"]): line for line in known}
    datasets, _ = make_edits(options.output_dir / "data", seed=0, size=options.edits)
    for recipe, settings in RECIPES.items():
        for seed in range(options.seeds):
            if (recipe, seed) in done:
                continue
            folder = options.output_dir / "model"
            shutil.rmtree(folder, ignore_errors=True)
            tune(options.base, datasets["intelligent"], folder, steps=options.steps, seed=seed, **settings)
            done[recipe, seed] = {"recipe": recipe, "seed": seed} | measure(folder, settings, options.items)
            with results.open("a") as file:
                file.write(json.dumps(done[recipe, seed]) + "\n")
    print(table(done))


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
