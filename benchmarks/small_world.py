"""The paper's claim in a small world, with controls and error bars: `python -m benchmarks.small_world --seeds 5`.

Tunes the small base in several ways and measures all of them on the same test items:

    paper     intelligent edits alone, image loss, source by the ViT view
    plain     plain edits of the same images, otherwise like paper: the control
    both      intelligent edits, source by the ViT and the VAE view
    gen only  like paper, the understanding expert frozen
    LoRA      like paper, adapters alone
    replay    intelligent edits with drawings, answers and plain edits beside them
    thinking  what instructions come down to, in words, and edits after that, with replay; one expert is frozen:
              the quickstart's recipe. Tune it longer, on more edits, in a folder of its own:
              `--ways thinking --steps 2400 --edits 20000 --data_sets 1`

Intelligent edits are measured twice: drawn at once, and after a plan that the model writes (rows `planned`).

Each run has a folder with its `items.jsonl`; finished runs are not repeated, so that a stopped benchmark resumes.
Prints a table in Markdown: the differences to the base, over items of the mean of the seeds, with 95 % paired
bootstrap intervals; `table.json` has the same with the mean of every seed.

The learning rate of the small world was chosen with `--split train --ways paper --seeds 1 --learning_rate RATE`, on
items of training images.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig

from uniedit_hf.arithmetic import best_arithmetic
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.evaluation.running import differing
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.quickstart.edit_data import EDIT_KINDS, load_edits, make_edits
from uniedit_hf.small_world.quickstart.tuning import (
    REPLAY_SETTINGS,
    TUNING_SETTINGS,
    base_folder,
    replay_settings,
    replay_shares,
    tune,
)
from uniedit_hf.small_world.replay import with_replay
from uniedit_hf.small_world.suite import groups, outputs_of, score, write_items
from uniedit_hf.small_world.suite_items import SmallWorldItem, planned, test_items


Way = Callable[[dict[str, Dataset]], tuple[object, dict]]
TuningSetup = Callable[
    [str, Path], tuple[object, dict]
]  # from a way and the folder of a seed's data to data and settings
BASE = base_folder(None, "bagel")


def replayed(shares: Mapping[str, float], **settings) -> Way:
    """Edits and plans with what the base knows beside them, in these shares (`uniedit_hf/small_world/replay.py`)."""
    return lambda data: (with_replay(*(data[kind] for kind in EDIT_KINDS), shares=shares), settings)


WAYS: dict[str, Way] = {
    "paper": lambda data: (data["intelligent"], {}),
    "plain": lambda data: (data["plain"], {}),
    "both": lambda data: (data["intelligent"], {"source_views": ["vit", "vae"]}),
    "gen only": lambda data: (data["intelligent"], {"freeze_und": True}),
    "LoRA": lambda data: (
        data["intelligent"],
        {"peft_config": LoraConfig(r=16, lora_alpha=32), "learning_rate": 1e-3},
    ),
    "replay": replayed(
        {"edits": 6, "drawings": 3, "questions": 3, "plain": 2},
        **REPLAY_SETTINGS | {"timestep_shift": 3.0, "max_tokens_per_pack": 2048},
    ),
    "thinking": replayed(replay_shares(BASE), **replay_settings(BASE)),
}


def measured(folder: Path, items: list[SmallWorldItem], path: Path | None) -> list[int]:
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


def tune_and_measure(options: argparse.Namespace, recipe: TuningSetup, run: tuple[int, str]) -> None:
    """One seed of one way: from its data to its `items.jsonl`. Does nothing if that is there."""
    seed, way = run
    folder = run_folder(options.output_dir, way, seed)
    if (folder / "items.jsonl").is_file():
        return
    torch.set_num_threads(1)
    dataset, settings = recipe(way, data_folder(options.output_dir, seed % options.data_sets))
    settings = {"learning_rate": options.learning_rate} | settings
    tune(base_folder(options.base, "bagel"), dataset, folder / "model", steps=options.steps, seed=seed, **settings)
    measured(folder, items_of(options), folder / "model")
    if not options.keep_models:
        shutil.rmtree(folder / "model")


def items_of(options: argparse.Namespace) -> list[SmallWorldItem]:
    """The suite's items, and its intelligent edits once more, planned."""
    items = test_items(options.items, options.split)
    return [*items, *planned(items)]


def run_folder(output_dir: Path, way: str, seed: int) -> Path:
    return output_dir / f"{way.replace(',', '').replace(' ', '_')}-{seed}"


def data_folder(output_dir: Path, seed: int) -> Path:
    return output_dir / f"data-{seed}"


def write_edits(folder: Path, seed: int, size: int) -> None:
    make_edits(folder, seed=seed, size=size)


def recipe(way: str, folder: Path) -> tuple[object, dict]:
    return WAYS[way]({kind: load_edits(folder, kind) for kind in EDIT_KINDS})


def run_all(
    options: argparse.Namespace, write_data: Callable[[Path, int, int], None], recipe: TuningSetup
) -> tuple[list[SmallWorldItem], dict[str, np.ndarray]]:
    """Base and all ways, all seeds, as far as they are not there yet.

    Args:
        options: Options of `arguments`.
        write_data: Writes the data of a seed: folder, seed, number of edits.
        recipe: The data and settings of a way.

    Returns:
        The test items and, for the base and every way, the scores [seeds, items].

    Raises:
        ValueError: The folder holds a benchmark with other settings.
    """
    decisive = ("base", "steps", "edits", "data_sets", "items", "learning_rate", "split")
    settings = {name: getattr(options, name) for name in decisive}
    open_benchmark(options.output_dir, settings | {"dtype": best_arithmetic().dtype_name})
    items = items_of(options)
    scores = {"base": [measured(options.output_dir / "base", items, base_folder(options.base, "bagel"))]}
    for seed in range(min(options.seeds, options.data_sets)):
        folder = data_folder(options.output_dir, seed)
        if not folder.is_dir():
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_data(unfinished, seed, options.edits)
            unfinished.rename(folder)
    runs = list(itertools.product(range(options.seeds), options.ways))
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(functools.partial(tune_and_measure, options, recipe), runs))
    for way in options.ways:
        folders = [run_folder(options.output_dir, way, seed) for seed in range(options.seeds)]
        scores[way] = [measured(folder, items, None) for folder in folders]
    return items, {way: np.array(each) for way, each in scores.items()}


def open_benchmark(folder: Path, settings: dict) -> None:
    """Begins a benchmark, or checks that the folder holds the same one.

    Raises:
        ValueError: The folder holds one with other settings.
    """
    file = folder / "settings.json"
    if file.exists() and (difference := differing(json.loads(file.read_text()), settings)):
        raise ValueError(f"{folder} holds a benchmark with other settings ({difference}): choose another output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def table(
    items: Sequence[SmallWorldItem], scores: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], path: Path
) -> str:
    """The base in percent and the differences of the ways to it and of pairs of ways, in Markdown, bold where the
    interval leaves out zero. Writes the same to `path` as JSON, as shares, with the mean of every seed."""
    pairs = [*((way, "base") for way in scores if way != "base"), *pairs]
    names = [way if other == "base" else f"{way} - {other}" for way, other in pairs]
    lines = ["| " + " | ".join(["", "base", *names]) + " |", "|---" * (len(names) + 2) + "|"]
    facts = {}
    for name, indices in groups(items).items():
        of_group = {way: each[:, indices] for way, each in scores.items()}
        facts[name] = {"n": len(indices), "seeds": {way: each.mean(axis=1).tolist() for way, each in of_group.items()}}
        cells = [f"{name}, n {len(indices)}", f"{100 * of_group['base'].mean():.1f}"]
        for column, (way, other) in zip(names, pairs):
            found = paired_difference(of_group[way].mean(axis=0), of_group[other].mean(axis=0))
            facts[name][column] = dict(zip(("difference", "low", "high"), found))
            cells.append(difference_in_words(*found))
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text(json.dumps(facts, indent=2) + "\n")
    return "\n".join(lines)


def difference_in_words(difference: float, low: float, high: float) -> str:
    """In points, with its interval."""
    points, lowest, highest = (f"{round(100 * each, 1) + 0.0:+.1f}" for each in (difference, low, high))
    return f"{f'**{points}**' if low > 0 or high < 0 else points} ({lowest} to {highest})"


def arguments(description: str, output_dir: str, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options of a benchmark that tunes in several ways."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir))
    parser.add_argument("--base", help="folder of the model to tune; the project's own if not given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--edits", type=int, default=3000)
    parser.add_argument("--data_sets", type=int, default=5, help="sets of edits; seeds beyond take them in turn again")
    parser.add_argument("--items", type=int, default=100, help="test items of each kind")
    parser.add_argument("--ways", nargs="+", choices=list(ways), default=list(ways))
    parser.add_argument("--learning_rate", type=float, default=TUNING_SETTINGS["learning_rate"])
    parser.add_argument("--split", choices=["train", "test"], default="test", help="whose items are measured")
    parser.add_argument("--keep_models", action="store_true", help="keep the tuned models")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    return parser


def main() -> None:
    options = arguments(__doc__, "runs/small_world_experiment", list(WAYS)).parse_args()
    items, scores = run_all(options, write_edits, recipe)
    print(table(items, scores, [], options.output_dir / "table.json"))


if __name__ == "__main__":
    main()
