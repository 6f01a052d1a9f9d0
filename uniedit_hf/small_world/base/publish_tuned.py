"""Ships the small BAGEL that was tuned for long: weights in 16 bit, processor, and a card with its results.

    python -m benchmarks.small_world --ways thinking --steps 2400 --edits 20000 --data_sets 1 --keep_models \\
        --output_dir runs/thinking
    python -m uniedit_hf.small_world.base.publish_tuned --run runs/thinking

It ships the first seed, whatever the seeds have reached.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.models.bagel import BagelForConditionalGeneration, BagelProcessor
from uniedit_hf.small_world.base.small_model import save
from uniedit_hf.small_world.quickstart.tuning import ASSETS, LONG
from uniedit_hf.small_world.suite import groups
from uniedit_hf.small_world.suite_items import planned, test_items


ROWS = (
    "understanding", "generation", "plain", "intelligent, to change", "intelligent, to leave", "planned, to change",
    "planned, to leave",
)  # fmt: skip
CARD = """---
license: apache-2.0
library_name: uniedit_hf
pipeline_tag: image-text-to-image
---

# The small BAGEL, tuned on intelligent edits

`assets/small_bagel` after {steps:,} steps of the quickstart's recipe on {edits:,} intelligent edits. Before drawing, \
it writes a plan: the questions that the instruction asks, their answers, and the edit that follows.

```python
from uniedit_hf import UniEditPipeline

pipe = UniEditPipeline.from_pretrained("assets/{folder}")
instruction = "if the shape is not a circle, put it at the top; otherwise make it green."
plan = pipe.answer(image, instruction, max_new_tokens=100)
edited = pipe.edit(image, plan, source_views=("understanding",), image_guidance_scale=1.0, text_guidance_scale=2.5)
```

## Results

Percent of right items on easy-VQA's test images; differences in points, with 95 % intervals over items. This \
model is seed 0; the last column is the mean of {seeds} seeds.

| | n | base | this model | difference | mean difference of {seeds} seeds |
|---|---|---|---|---|---|
{rows}

`planned` edits are drawn after the model's own plan; the base writes shorter plans, as it was taught.

## How it was made

```
python -m benchmarks.small_world --ways thinking --steps {steps} --edits {edits} --data_sets 1 --keep_models \\
    --output_dir runs/thinking
python -m uniedit_hf.small_world.base.publish_tuned --run runs/thinking
```

In {dtype}, averaged weights, the generation expert frozen. Its limits are those of `assets/small_bagel`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/thinking"), help="folder of the benchmark")
    parser.add_argument("--output_dir", type=Path, default=ASSETS / LONG["bagel"])
    options = parser.parse_args()
    seeds = sorted(options.run.glob("thinking-*/items.jsonl"))
    model = seeds[0].parent / "model"
    save(
        BagelForConditionalGeneration.from_pretrained(model),
        BagelProcessor.from_pretrained(model),
        options.output_dir,
    )
    settings = json.loads((options.run / "settings.json").read_text())
    items = test_items(settings["items"], settings["split"])
    items = [*items, *planned(items)]
    base = right(options.run / "base" / "items.jsonl")
    of_seeds = np.array([right(file) for file in seeds])
    found = groups(items)
    card = CARD.format(
        folder=options.output_dir.name,
        steps=settings["steps"],
        edits=settings["edits"],
        dtype=settings["dtype"],
        seeds=len(seeds),
        rows="\n".join(row(name, found[name], base, of_seeds) for name in ROWS),
    )
    (options.output_dir / "README.md").write_text(card)


def right(file: Path) -> np.ndarray:
    """Whether each item of an `items.jsonl` is right."""
    return np.array([json.loads(line)["right"] for line in file.read_text().splitlines()], dtype=float)


def row(name: str, indices: Sequence[int], base: np.ndarray, of_seeds: np.ndarray) -> str:
    """A line of the card's table."""
    before, first, mean = base[indices], of_seeds[0, indices], of_seeds[:, indices].mean(axis=0)
    shares = f"{100 * before.mean():.1f} | {100 * first.mean():.1f}"
    return f"| {name} | {len(indices)} | {shares} | {points(first, before)} | {points(mean, before)} |"


def points(values: np.ndarray, base: np.ndarray) -> str:
    """A paired difference with its interval."""
    difference, low, high = (100 * each for each in paired_difference(values, base))
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
