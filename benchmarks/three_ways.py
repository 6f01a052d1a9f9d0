"""Is it the embedded question that helps? Three ways of asking for the same edits: `python -m benchmarks.three_ways`.

Tunes the small base on the same images, targets and draws of noise, and asks for them in one of three ways
(`uniedit_hf/small_world/asking.py`):

    question   if the shape is red, give it the color of grass; otherwise shrink it.
    answer     the shape is red, the color of grass is green, so make it green.
    plain      make it green.

A step shows about 22 edits in every way: instructions differ in length, so packs do, too.

Edits that leave the image as it is stay in all three: the question leads there, the answer says why, and the plain
edit is "leave it as it is". Measures all of them on the test items of `benchmarks.small_world`, with its settings,
processes, folders and resume, and prints a table in Markdown: differences to the base, and of the question to the two
others, over items of the mean of the seeds, with 95 % paired bootstrap intervals.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from benchmarks.small_world import arguments, run_all, table
from uniedit_hf.small_world.asking import ASKING_STYLES
from uniedit_hf.small_world.quickstart.edit_data import intelligent_settings, load_edits
from uniedit_hf.synthesis.run import run as synthesize


# 36 tokens of an edit are its images; its text, which is left out one time in ten, has 38, 21 or 8 on the mean.
PACK = {"question": 1536, "answer": 1196, "plain": 938}
PAIRS = (("question", "answer"), ("question", "plain"))


def write_edits(folder: Path, seed: int, size: int) -> None:
    """The same edits in a data set a way of asking."""
    for asking in ASKING_STYLES:
        synthesize(intelligent_settings(folder / asking, seed=seed, size=size, asking=asking))


def recipe(way: str, folder: Path) -> tuple[Dataset, dict]:
    """The data of a way of asking, and packs of as many edits."""
    return load_edits(folder, way), {"max_tokens_per_pack": PACK[way]}


def main() -> None:
    options = arguments(__doc__, "runs/three_ways", ASKING_STYLES).parse_args()
    items, scores = run_all(options, write_edits, recipe)
    pairs = [pair for pair in PAIRS if {*pair} <= {*options.ways}]
    print(table(items, scores, pairs, options.output_dir / "table.json"))


if __name__ == "__main__":
    main()
