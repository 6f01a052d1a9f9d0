"""Trains a small model in the tree that is on the path, a few steps at a time, as `benchmarks.step_speed` tells it to.

Reads a line, takes `steps` steps, prints their wall and CPU seconds, and so on. Uses nothing that differs between the
trees that are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from io import BytesIO

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from transformers import TrainerCallback

from uniedit_hf.training import UniEditConfig, UniEditTrainer


WORDS = "move the red circle to the left and make it blue".split()


def picture(seed: int) -> dict:
    """64 x 64 pixels with a rectangle."""
    drawn = np.random.default_rng(seed)
    pixels = np.full((64, 64, 3), drawn.integers(0, 256, 3), dtype=np.uint8)
    top, left = drawn.integers(0, 40, 2)
    pixels[top : top + 20, left : left + 20] = drawn.integers(0, 256, 3)
    file = BytesIO()
    Picture.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def edits(count: int) -> Dataset:
    """Rows for the recipe `edit`."""
    rows = [
        {
            "id": f"row-{i}",
            "source_image": picture(2 * i),
            "instruction": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(6 + i % 9)),
            "target_image": picture(2 * i + 1),
        }
        for i in range(count)
    ]
    text, image = Value("string"), Image()
    features = Features({"id": text, "source_image": image, "instruction": text, "target_image": image})
    return Dataset.from_list(rows, features)


class Turns(TrainerCallback):
    """Waits for a line on standard input before every `steps` steps and says afterwards how long they took."""

    def __init__(self, steps: int):
        self.steps = steps
        self.begun: tuple[float, float] | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            sys.stdin.readline()
            self.begun = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            seconds = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
            print(json.dumps([each / self.steps for each in seconds]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("output")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    args = UniEditConfig(
        output_dir=options.output,
        max_steps=options.steps * options.turns,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        max_tokens_per_pack=1536,
        **options.settings,
    )
    trainer = UniEditTrainer(options.base, args, train_dataset=edits(800), callbacks=[Turns(options.steps)])
    trainer.train()


if __name__ == "__main__":
    main()
