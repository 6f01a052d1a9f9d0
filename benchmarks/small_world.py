"""The paper's claim in a small world, with controls and error bars: `python -m benchmarks.small_world --seeds 5`.

Tunes the small base in several ways and measures all of them on the same test items:

    paper     intelligent edits alone, image loss, source by the ViT view
    plain     plain edits of the same pictures, otherwise like paper: the control
    both      intelligent edits, source by the ViT and the VAE view
    gen only  like paper, the understanding expert frozen
    mixed     intelligent edits with answers and drawings beside them (weights 2 : 1 : 1), text loss on

Each run has a folder with its `items.jsonl`; runs that are there are not repeated, so that a stopped benchmark goes
on. Prints one JSON line per way and ability: the mean difference to the base over seeds and items with its 95 % paired
bootstrap interval over items, and the mean of every seed.

The learning rate of the small world was chosen with `--split train --ways paper --seeds 1 --learning_rate RATE`, on
items of training pictures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset

from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.quickstart.data import make_edits
from uniedit_hf.quickstart.items import Item, test_items
from uniedit_hf.quickstart.measure import ABILITIES, outputs_of, score, write_items
from uniedit_hf.quickstart.tuning import SMALL_WORLD, base_folder, tune
from uniedit_hf.recipes import PAPER, answer_sample, edit_sample, generate_sample
from uniedit_hf.synthesis.easy_vqa import load_easy_vqa, load_image, one_row_per_image
from uniedit_hf.synthesis.questions import drawing_of
from uniedit_hf.synthesis.reader import read
from uniedit_hf.training import TrainingPart


Way = Callable[[dict[str, Dataset]], tuple[object, dict]]
KINDS = ("intelligent", "plain")
WAYS: dict[str, Way] = {
    "paper": lambda data: (data["intelligent"], {}),
    "plain": lambda data: (data["plain"], {}),
    "both": lambda data: (data["intelligent"], {"source_views": ["vit", "vae"]}),
    "gen only": lambda data: (data["intelligent"], {"freeze_und": True}),
    "mixed": lambda data: (mixed_parts(data["intelligent"]), {"recipe": "interleaved", "text_loss_weight": 0.25}),
}


def mixed_parts(edits: Dataset) -> list[TrainingPart]:
    """Edits, questions with their answers, and prompts with their pictures, of easy-VQA's training pictures."""
    pictures = {row.image_id: load_image(row.image_path) for row in one_row_per_image(load_easy_vqa("train"))}
    questions = [
        {"id": f"question-{i}", "source_image": pictures[row.image_id], "question": row.question, "answer": row.answer}
        for i, row in enumerate(load_easy_vqa("train")[::8])
    ]
    prompts = [
        {"id": f"prompt-{i}", "prompt": drawing_of(read(image)).prompts()[0], "target_image": image}
        for i, image in pictures.items()
    ]
    return [
        TrainingPart(edits, functools.partial(edit_sample, conditioning=PAPER), 2.0),
        TrainingPart(Dataset.from_list(questions), answer_sample, 1.0),
        TrainingPart(Dataset.from_list(prompts), generate_sample, 1.0),
    ]


def measured(folder: Path, items: list[Item], path: Path | None) -> list[int]:
    """The score of every item, from the folder's `items.jsonl` or, without one, by running the model at `path`."""
    lines = folder / "items.jsonl"
    if not lines.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        outputs = outputs_of(UniEditPipeline.from_pretrained(path, batch_size=50), items, folder.name)
        scores = [score(item, output) for item, output in zip(items, outputs)]
        unfinished = folder / "items.jsonl.tmp"
        write_items(unfinished, items, {"right": outputs}, {"right": scores})
        unfinished.rename(lines)
    return [json.loads(line)["right"] for line in lines.read_text().splitlines()]


def tune_and_measure(options: argparse.Namespace, run: tuple[int, str]) -> None:
    """One seed of one way: from its data to its `items.jsonl`. Does nothing if that is there."""
    seed, way = run
    folder = run_folder(options.output_dir, way, seed)
    if (folder / "items.jsonl").is_file():
        return
    torch.set_num_threads(1)
    data = {kind: load_dataset(str(options.output_dir / f"data-{seed}" / kind), split="train") for kind in KINDS}
    dataset, settings = WAYS[way](data)
    settings = {"learning_rate": options.learning_rate} | settings
    tune(base_folder(options.base, "bagel"), dataset, folder / "model", steps=options.steps, seed=seed, **settings)
    measured(folder, test_items(options.items, options.split), folder / "model")
    shutil.rmtree(folder / "model")


def run_folder(output_dir: Path, way: str, seed: int) -> Path:
    return output_dir / f"{way.replace(' ', '_')}-{seed}"


def print_table(ways: list[str], seeds: int, output_dir: Path, items: list[Item], of_base: list[int]) -> None:
    """One line of JSON per ability and way, from the runs' folders."""
    runs = {
        way: np.array([measured(run_folder(output_dir, way, i), items, None) for i in range(seeds)]) for way in ways
    }
    for ability in ABILITIES:
        of_ability = [i for i, item in enumerate(items) if item.ability == ability]
        base = [of_base[i] for i in of_ability]
        print(json.dumps({"ability": ability, "base": float(np.mean(base)), "n": len(base)}))
        for way, scores in runs.items():
            of_seeds = scores[:, of_ability]
            difference, low, high = paired_difference(of_seeds.mean(axis=0), base)
            row = {"way": way, "mean": float(of_seeds.mean()), "difference": difference, "ci95": [low, high]}
            print(json.dumps(row | {"seeds": [float(x) for x in of_seeds.mean(axis=1)]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_world_experiment"))
    parser.add_argument("--base", help="folder of the model to tune; the project's own if not given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--edits", type=int, default=3000)
    parser.add_argument("--items", type=int, default=100, help="test items of each kind")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--learning_rate", type=float, default=SMALL_WORLD["learning_rate"])
    parser.add_argument("--split", choices=["train", "test"], default="test", help="whose items are measured")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    options = parser.parse_args()
    items = test_items(options.items, options.split)
    of_base = measured(options.output_dir / "base", items, base_folder(options.base, "bagel"))
    for seed in range(options.seeds):
        if not (options.output_dir / f"data-{seed}").is_dir():
            make_edits(options.output_dir / f"data-{seed}", seed=seed, size=options.edits)
    runs = list(itertools.product(range(options.seeds), options.ways))
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(functools.partial(tune_and_measure, options), runs))
    print_table(options.ways, options.seeds, options.output_dir, items, of_base)


if __name__ == "__main__":
    main()
