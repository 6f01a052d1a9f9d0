"""Trains the small base model: answers, drawings, plain edits and redrawing on easy-VQA's training images.

    python -m uniedit_hf.small_world.base.bagel_base --vae runs/small_world/vae --output_dir runs/small_world/base

First the ViT learns to read: its tokens must predict the latents of their own square of the image, and the shape,
color and box of the whole. Then everything except the autoencoder learns the three abilities together. It uses a plain
loop instead of `UniEditTrainer`, because the latents of all images are computed once and not in every step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from uniedit_hf.arithmetic import cpu_arithmetic
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.base.measure import measure
from uniedit_hf.small_world.base.samples import Draws, Pool, make_pool
from uniedit_hf.small_world.base.scenes import as_tensor, real_scenes
from uniedit_hf.small_world.base.small_model import new_model, save
from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE
from uniedit_hf.training.ema import WeightAverage


READING_BATCH, READING_RATE = 64, 1.5e-3
PEAK_RATE, PLACE_RATE, WARMUP, DECAY, WEIGHT_DECAY = 1e-3, 4e-3, 100, 0.3, 0.01
AVERAGE_DECAY = 0.995
SAVE_EVERY = 50


@dataclass(frozen=True)
class Mix:
    """The number of samples of each sort in a step, and of noised copies of every target.

    Args:
        answers: Questions with answers.
        composed: Share of the questions that are composed.
        drawings: Images from a prompt.
        edits: Plain edits.
        redrawings: Images from themselves.
        conditional: Edits with a condition.
        embedded: Questions that conditions ask.
        plans: Instructions with a condition, and what they come down to.
        planned: Edits after such a plan.
        noise_draws: Noised copies of a target.
        text_weight: Weight of the text loss beside the image loss.
    """

    answers: int = 16
    composed: float = 0.6
    drawings: int = 24
    edits: int = 48
    redrawings: int = 8
    conditional: int = 0
    embedded: int = 0
    plans: int = 0
    planned: int = 0
    noise_draws: int = 2
    text_weight: float = 0.5


# Answers are learned long before drawings; from this step on, a few questions per step retain them.
FEWER_QUESTIONS_FROM = 1300
FIRST_MIX, LATER_MIX = Mix(), Mix(answers=3, text_weight=0.2)


@dataclass(frozen=True)
class Plan:
    """How long, on what and how fast a base is trained.

    Args:
        steps: Steps of the optimizer.
        mix_at: The mix of a step, by its number.
        rate: Peak learning rate.
        place_rate: Peak learning rate of the tables of places.
        average: Decay of the average of the weights.
        eval_every: Steps between figures.
        seed: Seed of all draws.
        stop_after: Stop early, as a killed run would.
    """

    steps: int
    mix_at: Callable[[int], Mix]
    rate: float = PEAK_RATE
    place_rate: float = PLACE_RATE
    average: float = AVERAGE_DECAY
    eval_every: int = 1000
    seed: int = 0
    stop_after: int | None = None


def mix_at(step: int) -> Mix:
    """That of the first base."""
    return FIRST_MIX if step < FEWER_QUESTIONS_FROM else LATER_MIX


def main() -> None:
    options = parse_options()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = new_model(options.vae, options.seed)
    model.set_attn_implementation("eager")  # on short rows in bf16 twice as fast as SDPA's kernel for the CPU
    start_places(model, options.seed)
    pool = make_pool(model, options.seed, options.random_pictures, options.output_dir / "latents.safetensors")
    reading = options.output_dir / "reading.pt"
    if not reading.exists():
        learn_to_read(model, processor, pool, options)
        torch.save(model.model.state_dict(), reading)
    model.model.load_state_dict(torch.load(reading, weights_only=True))
    plan = Plan(options.steps, mix_at, eval_every=options.eval_every, seed=options.seed, stop_after=options.stop_after)
    test = real_scenes("test")
    train(
        model,
        processor,
        pool,
        plan,
        options.output_dir,
        lambda pipe: measure(pipe, *test, options.eval_items, ["vit"]),
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", type=Path, default=Path("runs/small_world/vae"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_world/base"))
    parser.add_argument("--random_pictures", type=int, default=6000)
    parser.add_argument("--reading_steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--stop_after", type=int, default=None, help="stop early, as a killed run would; for probes")
    parser.add_argument("--eval_every", type=int, default=1000)
    parser.add_argument("--eval_items", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start_places(model, seed: int) -> None:
    """Gives both views of an image the same table of positions, with orthogonal rows.

    In sinusoidal tables, adjacent squares of a 4 x 4 grid are so similar that attention takes very long to distinguish
    them, and a position in the ViT view has to be matched with one in the drawn view.
    """
    tables = [model.model.vit_pos_embed.pos_embed, model.model.latent_pos_embed.pos_embed]
    places, size = tables[0].shape
    rows = torch.linalg.qr(torch.randn(size, places, generator=torch.Generator().manual_seed(seed)))[0].T
    with torch.no_grad():
        for table in tables:
            table.copy_(rows * size**0.5 / 2)


def learn_to_read(model, processor, pool: Pool, options: argparse.Namespace) -> None:
    """Supervises the ViT and the connector with heads that are thrown away afterwards."""
    size, tokens = model.config.text_config.hidden_size, (SIDE // processor.image_processor.vit_stride) ** 2
    torch.manual_seed(options.seed)
    heads = nn.ModuleDict(
        {
            "latents": nn.Linear(size, model.config.latent_token_size),
            "scene": nn.Linear(size * tokens, len(SHAPES) + len(PALETTE) + 4),
        }
    )
    parameters = [*model.model.vit_model.parameters(), *model.model.connector.parameters(), *heads.parameters()]
    groups = [{"params": parameters, "peak": READING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=READING_RATE, weight_decay=WEIGHT_DECAY)
    with tqdm(range(options.reading_steps), desc="reading", mininterval=10) as progress:
        for step in progress:
            set_rate(optimizer, step, options.reading_steps)
            images = python_random(options.seed, "reading", step).sample(range(len(pool.scenes)), READING_BATCH)
            patches = [processor.image_processor.patchify_vit(x) for x in as_tensor(pool.pictures[images])]
            grids = torch.full((len(images), 2), SIDE // processor.image_processor.vit_stride)
            wanted, _ = model.model.latent_tokens(list(pool.latents[images]))
            with cpu_arithmetic().autocast():
                seen = model.model.embed_vit(torch.cat(patches), grids)
                read, named = heads["latents"](seen), heads["scene"](seen.view(len(images), -1))
            latents = (read.float() - wanted).square().mean()
            scene = scene_loss(named.float(), [pool.scenes[i] for i in images])
            take_step(latents + 0.2 * scene, optimizer, parameters)
            progress.set_postfix(latents=f"{latents.item():.3f}", scene=f"{scene.item():.3f}", refresh=False)


def scene_loss(read: torch.Tensor, scenes: list) -> torch.Tensor:
    """Cross entropies of shape and color and the distance of the boxes, for images with one shape."""
    single = [index for index, shown in enumerate(scenes) if len(shown) == 1]
    shown = [scenes[index][0] for index in single]
    shape, color, box = read[single].split([len(SHAPES), len(PALETTE), 4], dim=1)
    shapes = torch.tensor([SHAPES.index(scene.shape) for scene in shown])
    colors = torch.tensor([list(PALETTE).index(scene.color) for scene in shown])
    boxes = torch.tensor([scene.box for scene in shown]) / (SIDE / 4) - 2
    named = nn.functional.cross_entropy(shape, shapes) + nn.functional.cross_entropy(color, colors)
    return named + (box - boxes).abs().mean()


def train(model, processor, pool: Pool, plan: Plan, folder: Path, figures: Callable[[UniEditPipeline], dict]) -> None:
    """Trains in place with checkpoints, an average of the weights and figures along the way; resumes by itself.

    Args:
        model: Where to start.
        processor: Its processor.
        pool: The pool that samples are drawn from.
        plan: How long and how fast.
        folder: Where checkpoints, the log and the model go.
        figures: Measures a model along the way.
    """
    draws = Draws(pool, plan.mix_at(0).noise_draws)
    model.train()
    optimizer, parameters = optimizer_of(model, plan)
    average = WeightAverage(model, plan.average)
    first, spent = resume(model, optimizer, average, folder)
    started = time.time() - spent
    last = min(plan.steps, plan.stop_after or plan.steps)
    sums: dict[str, float] = {}
    with tqdm(range(first, last), initial=first, total=plan.steps, mininterval=10) as progress:
        for step in progress:
            set_rate(optimizer, step, plan.steps)
            mix = plan.mix_at(step)
            with cpu_arithmetic().autocast():
                losses = model(**pack(processor, draws, mix, step, plan.seed))
            image, text = losses.image_sum / losses.image_count, losses.text_sum / losses.text_count
            take_step(image + mix.text_weight * text, optimizer, parameters)
            average.update(model)
            for name, value in {"image": image.item(), "text": text.item(), "steps": 1}.items():
                sums[name] = sums.get(name, 0) + value
            progress.set_postfix(image=f"{image.item():.3f}", text=f"{text.item():.3f}", refresh=False)
            seconds = round(time.time() - started)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == last:
                count = sums.pop("steps")
                line = {name: round(value / count, 4) for name, value in sums.items()}
                sums = {}
                log(folder, {"step": step + 1, "seconds": seconds} | line)
                keep_state(model, optimizer, average, step + 1, seconds, folder)
            if (step + 1) % plan.eval_every == 0 or step + 1 == last:
                save(model, processor, folder / "model", average.shadow)
                found = figures(UniEditPipeline.from_pretrained(folder / "model", batch_size=50))
                log(folder, {"step": step + 1, "seconds": seconds} | found)


def optimizer_of(model, plan: Plan) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """AdamW, and what it trains. The tables of places are frozen in a finished model; here they are made."""
    places = [model.model.vit_pos_embed.pos_embed, model.model.latent_pos_embed.pos_embed]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for table in places:
        table.requires_grad_(True)
    groups = [
        {"params": parameters, "peak": plan.rate, "weight_decay": WEIGHT_DECAY},
        {"params": places, "peak": plan.place_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99)), [*parameters, *places]


def keep_state(model, optimizer, average: WeightAverage, step: int, seconds: float, folder: Path) -> None:
    """Writes everything that `resume` reads."""
    state = {"model": model.model.state_dict(), "lm_head": model.lm_head.state_dict()}
    state |= {"optimizer": optimizer.state_dict(), "average": average.shadow, "step": step, "seconds": seconds}
    unfinished = folder / "state.part"
    torch.save(state, unfinished)
    os.replace(unfinished, folder / "state.pt")


def pack(processor, draws: Draws, mix: Mix, step: int, seed: int) -> dict:
    """The inputs of one step, with latents from the pool instead of pixels."""
    rng = python_random(seed, "step", step)
    sorts: list[Callable] = [partial(draws.answer, composed=mix.composed)] * mix.answers
    sorts += [draws.drawing] * mix.drawings + [draws.edit] * mix.edits + [draws.redrawing] * mix.redrawings
    sorts += [draws.conditional] * mix.conditional + [draws.embedded] * mix.embedded
    sorts += [draws.plan] * mix.plans + [draws.planned] * mix.planned
    drawn = [draw(f"{step}/{index}", rng) for index, draw in enumerate(sorts)]
    features = dict(processor.pack([each.sample for each in drawn], seed))
    del features["vae_images"]
    latents = [draws.pool.latents[index] for each in drawn for index in each.latents]
    return features | {"latents": latents}


def take_step(loss: torch.Tensor, optimizer, parameters: list[nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def set_rate(optimizer, step: int, steps: int) -> None:
    """Warm-up, a plateau at each group's `peak`, and a straight line to zero over the last `DECAY` of the steps."""
    left = (steps - step) / (DECAY * steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min((step + 1) / WARMUP, 1.0, left)


def resume(model, optimizer, average: WeightAverage, folder: Path) -> tuple[int, float]:
    """Resumes from the last checkpoint, if there is one; returns the next step and the seconds spent."""
    file = folder / "state.pt"
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    model.model.load_state_dict(state["model"])
    model.lm_head.load_state_dict(state["lm_head"])
    optimizer.load_state_dict(state["optimizer"])
    average.shadow = state["average"]
    return state["step"], state["seconds"]


def log(folder: Path, line: dict) -> None:
    with (folder / "training_log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
