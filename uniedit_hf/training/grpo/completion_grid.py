"""An image of a generation batch: a row for each prompt, its source, and its completions with their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .rollouts import Completion


CELL, LINE, MOST_ROWS = 128, 14, 8


def save_completions(
    completions: Sequence[Completion], rewards: torch.Tensor, names: Sequence[str], args, step: int
) -> Path:
    """Saves `completions/step-N.png` and hands it to the reporters.

    Args:
        completions: The completions of this process, by prompt.
        rewards: (completions, functions).
        names: The names of the functions.
        args: The arguments of the run.
        step: N.
    """
    grid = completion_grid(completions, rewards, names, args.num_generations)
    folder = Path(args.output_dir, "completions")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step}.png"
    grid.save(path)
    for reporter in args.report_to:
        _report(reporter, grid, step, args)
    return path


def completion_grid(
    completions: Sequence[Completion], rewards: torch.Tensor, names: Sequence[str], num_generations: int
) -> Image.Image:
    """The grid as an image; texts are written where there is no image."""
    height = CELL + LINE * (len(names) + 1)
    rows = min(len(completions) // num_generations, MOST_ROWS)
    grid = Image.new("RGB", ((num_generations + 1) * CELL, rows * height), "white")
    draw = ImageDraw.Draw(grid)
    for row in range(rows):
        first = row * num_generations
        prompt = completions[first].prompt
        _paste(grid, prompt.source, 0, row * height)
        draw.text((2, row * height + CELL), prompt.instruction[:120], fill="black")
        for number in range(num_generations):
            left, top = (number + 1) * CELL, row * height
            each = completions[first + number]
            if each.image is None:
                draw.multiline_text((left + 2, top + 2), each.text or "", fill="black")
            _paste(grid, each.image, left, top)
            for line, (name, reward) in enumerate(zip(names, rewards[first + number].tolist()), start=1):
                draw.text((left + 2, top + CELL + line * LINE), f"{name[:14]} {reward:.2f}", fill="black")
    return grid


def _paste(grid: Image.Image, image: Image.Image | None, left: int, top: int) -> None:
    if image is not None:
        shown = image.copy()
        shown.thumbnail((CELL - 4, CELL - 4))
        grid.paste(shown, (left + 2, top + 2))


def _report(reporter: str, grid: Image.Image, step: int, args) -> None:
    """Hands the grid to a reporter that shows images."""
    if reporter in ("wandb", "trackio"):
        module = import_module(reporter)
        module.log({"completions": module.Image(np.asarray(grid) if reporter == "trackio" else grid)}, step=step)
    elif reporter == "tensorboard":
        writer = import_module("torch.utils.tensorboard").SummaryWriter(args.logging_dir)
        writer.add_image("completions", np.asarray(grid), step, dataformats="HWC")
        writer.close()
