"""Trains the tiny autoencoder of the small world, and measures it.

    python -m uniedit_hf.small_world.base.vae --output_dir runs/small_world/vae

With only an L1 and squared loss, corners become round, and the reader mistakes rectangles for circles; weighting it by
local contrast preserves them. Most steps use crops of 32 x 32 pixels around a shape, which are four times cheaper than
the image; the last steps use whole images, to adapt group norms and attention.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm

from uniedit_hf.arithmetic import cpu_arithmetic
from uniedit_hf.models.bagel.configuration_bagel import BagelVaeConfig
from uniedit_hf.models.bagel.encoders_bagel import build_vae
from uniedit_hf.small_world.base.scenes import as_pictures, as_tensor, random_picture, real_scenes
from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import Scene


SHAPE = {
    "base_channels": 16,
    "channel_multipliers": (1, 2, 4, 4),
    "norm_num_groups": 4,
    "num_res_blocks": 1,
    "z_channels": 8,
}
CROP, CROP_BATCH, WHOLE_BATCH = 32, 32, 8
CONTRAST, KL = 4.0, 1e-3
PEAK_RATE, LAST_RATE, WARMUP = 2e-3, 3e-5, 100
SAVE_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_world/vae"))
    parser.add_argument("--crop_steps", type=int, default=3000)
    parser.add_argument("--whole_steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    vae = build_vae(BagelVaeConfig(**SHAPE))
    images, scenes = real_scenes("train")
    train(vae, images, scenes, options)
    mean, std = latent_statistics(vae, images)

    def round_trip(pixels: torch.Tensor) -> torch.Tensor:
        return vae.decode(vae.encode(pixels).latent_dist.mean).sample

    report = {"shift_factor": mean, "scaling_factor": 1 / std} | measure(round_trip, *real_scenes("test"))
    save_file(vae.state_dict(), options.output_dir / "vae.safetensors")
    (options.output_dir / "vae.json").write_text(json.dumps(SHAPE | report, indent=2) + "\n")
    print(json.dumps(report))


def train(vae, images: np.ndarray, scenes: list[Scene], options: argparse.Namespace) -> None:
    """Trains in place; resumes from `output_dir/state.pt` if it exists."""
    steps = options.crop_steps + options.whole_steps
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    state_file, first = options.output_dir / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    started = time.time()
    with tqdm(range(first, steps), initial=first, total=steps, mininterval=10) as progress:
        for step in progress:
            crops = step < options.crop_steps
            pixels = batch(images, scenes, crops, random.Random(f"{options.seed}/{step}"))
            loss, figures = vae_loss(vae, pixels, torch.Generator().manual_seed(options.seed * 1_000_003 + step))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                line = {"step": step + 1, "crops": crops, "seconds": round(time.time() - started, 1)} | figures
                progress.set_postfix(psnr=figures["psnr"])
                with (options.output_dir / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                parts = {"vae": vae, "optimizer": optimizer, "schedule": schedule}
                torch.save({k: v.state_dict() for k, v in parts.items()} | {"step": step + 1}, state_file)


def rate(step: int, steps: int) -> float:
    """The learning rate relative to its peak: warm-up, then a cosine to the last rate."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(steps - WARMUP, 1)
    last = LAST_RATE / PEAK_RATE
    return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2


def batch(images: np.ndarray, scenes: list[Scene], crops: bool, rng: random.Random) -> torch.Tensor:
    """Half real and half drawn images, pixels (n, 3, h, w) in [-1, 1]."""
    count = CROP_BATCH if crops else WHOLE_BATCH
    pictures = [images[rng.randrange(len(images))] for _ in range(count // 2)]
    pictures += [random_picture(scenes, rng) for _ in range(count - count // 2)]
    return as_tensor(np.stack([crop(picture, rng) for picture in pictures] if crops else pictures))


def crop(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """A square crop with a shape in its center."""
    apart = np.abs(picture.astype(np.int16) - picture[0, 0]).max(axis=2) > 48
    rows, columns = np.nonzero(apart)
    chosen = rng.randrange(len(rows))
    top, left = (
        min(max(int(at[chosen]) - rng.randrange(CROP // 4, 3 * CROP // 4), 0), len(picture) - CROP)
        for at in (rows, columns)
    )
    return picture[top : top + CROP, left : left + CROP]


def vae_loss(vae, pixels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted reconstruction loss plus a small divergence from the standard normal."""
    with cpu_arithmetic().autocast():
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
    error = decoded.float() - pixels
    brightest = functional.max_pool2d(pixels, 5, stride=1, padding=2)
    darkest = -functional.max_pool2d(-pixels, 5, stride=1, padding=2)
    weight = 1 + CONTRAST * (brightest - darkest).amax(dim=1, keepdim=True)
    reconstruction = (weight * (error.abs() + 2 * error.square())).mean()
    mean, variance = posterior.mean.float(), posterior.var.float()
    divergence = 0.5 * (mean.square() + variance - 1 - variance.log()).mean()
    psnr = -10 * math.log10(error.square().mean().item() / 4)
    figures = {"loss": reconstruction.item(), "kl": divergence.item(), "psnr": psnr}
    return reconstruction + KL * divergence, {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def latent_statistics(vae, images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all latents of 1,000 images."""
    latents = torch.cat([vae.encode(as_tensor(part)).latent_dist.mean for part in np.split(images[:1000], 20)])
    return latents.mean().item(), latents.std().item()


@torch.no_grad()
def measure(
    round_trip: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray, scenes: list[Scene]
) -> dict[str, float]:
    """PSNR of all images in decibels, and how often the reader finds the same after the round trip.

    Args:
        round_trip: Encodes and decodes pixels (n, 3, 64, 64).
        images: uint8 (n, 64, 64, 3).
        scenes: Their scenes.
    """
    squared, right, near = [], [], []
    for part in range(0, len(images), 50):
        pixels = as_tensor(images[part : part + 50])
        decoded = round_trip(pixels)
        squared.append((decoded.clamp(-1, 1) - pixels).square().mean().item())
        for before, after in zip(scenes[part : part + 50], map(read, as_pictures(decoded))):
            right.append(after is not None and (after.shape, after.color) == (before.shape, before.color))
            near.append(right[-1] and max(abs(a - b) for a, b in zip(after.box, before.box)) <= 2)
    return {
        "psnr": -10 * math.log10(np.mean(squared) / 4),
        "reader_right": float(np.mean(right)),
        "box_within_2_pixels": float(np.mean(near)),
        "images": len(images),
    }


if __name__ == "__main__":
    main()
