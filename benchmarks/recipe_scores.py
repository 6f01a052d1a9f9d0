"""The five-seed tables of recipes that were tuned on a GPU: `python -m benchmarks.recipe_scores runs/joined/recipes`.

Reads the `scores.jsonl` that `uniedit_hf.small_world.base.gpu_recipes` wrote, prints the table of a split (base in
percent, then differences to it, over items of the mean of the seeds, with 95 % paired bootstrap intervals), and writes
it
to `table-SPLIT.json`. Recipes are chosen on `--split train`, which has fewer items; figures are those of `test`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.small_world import table
from uniedit_hf.small_world.suite_items import SmallWorldItem, test_items


PAIRS = (("paper", "answer"), ("paper", "plain"), ("self-drawn", "paper"))


def read_scores(folder: Path, split: str, recipes: Sequence[str] | None, part: str) -> dict[str, np.ndarray]:
    """The scores (seeds, items) of every recipe, the base first.

    Raises:
        ValueError: A recipe is missing.
    """
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    scores: dict[str, list] = {}
    for line in lines:
        if line["split"] == split:
            scores.setdefault(line["recipe"], []).append(line[part])
    unknown = [name for name in recipes or () if name not in scores]
    if unknown:
        raise ValueError(f"{folder} has no scores of {', '.join(unknown)}; it has {', '.join(scores)}.")
    return {name: np.array(each) for name, each in scores.items() if not recipes or name in ("base", *recipes)}


def items_of(count: int, split: str) -> list[SmallWorldItem]:
    """The items that so many scores belong to: six times as many as there are of a kind."""
    return test_items(count // 6, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=["train", "test"], default="test")
    parser.add_argument("--recipes", nargs="+", help="all if not given")
    parser.add_argument("--part", choices=["right", "changed", "kept"], default="right")
    options = parser.parse_args()
    scores = read_scores(options.folder, options.split, options.recipes, options.part)
    pairs = [pair for pair in PAIRS if {*pair} <= {*scores}]
    items = items_of(scores["base"].shape[1], options.split)
    print(table(items, scores, pairs, options.folder / f"table-{options.split}.json"))


if __name__ == "__main__":
    main()
