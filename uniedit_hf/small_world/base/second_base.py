"""Continues the training of the first BAGEL base, on a CPU: more of what it knows, and a first grasp of conditions.

    python -m uniedit_hf.small_world.base.second_base --output_dir runs/conditions
    python -m uniedit_hf.small_world.base.second_base --base runs/conditions/model --mix plans --steps 1200 \\
        --rate 5e-4 --output_dir runs/second

Beside answers, drawings, plain edits and redrawing it sees edits with a single condition about shape or color, and
the questions that such conditions ask; with `--mix plans` also what such an instruction comes down to, in words.
Nested conditions, and those about count, place and knowledge, are left to the tuning. Figures along the way are of
items on training images. Resumes from `state.pt` in its folder.

The bands, stated before the training: questions 80 to 95 % right, drawings 75 to 95, plain edits by the ViT view 75
to 95, intelligent edits that change something 10 to 30.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from uniedit_hf.images import open_image
from uniedit_hf.models.bagel import BagelForConditionalGeneration, BagelProcessor
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.base.bagel_base import Mix, Plan, train
from uniedit_hf.small_world.base.samples import Pool, draw_pictures, encode
from uniedit_hf.small_world.base.world_tables import ASSETS, FIRST_GRASP, FIRST_GRASP_SEED
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import intelligent_edits
from uniedit_hf.small_world.suite import groups, outputs_of, score
from uniedit_hf.small_world.suite_items import planned, test_items
from uniedit_hf.synthesis.records import Record


MIXES = {
    "conditions": Mix(answers=3, embedded=3, drawings=24, edits=44, redrawings=6, conditional=16, text_weight=0.2),
    "plans": Mix(
        answers=3,
        embedded=2,
        drawings=20,
        edits=40,
        redrawings=4,
        conditional=8,
        plans=24,
        planned=10,
        text_weight=0.4,
    ),
}
AVERAGE_DECAY = 0.998


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    model = BagelForConditionalGeneration.from_pretrained(options.base, attn_implementation="eager")
    processor = BagelProcessor.from_pretrained(options.base)
    pool = make_pool(model, options)
    plan = Plan(
        options.steps,
        lambda step: MIXES[options.mix],
        options.rate,
        options.rate,
        AVERAGE_DECAY,
        options.eval_every,
        options.seed,
    )
    train(model, processor, pool, plan, options.output_dir, lambda pipe: train_figures(pipe, options.eval_items))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=ASSETS / "small_bagel", help="the checkpoint to start from")
    parser.add_argument("--mix", choices=list(MIXES), default="conditions")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_world/second"))
    parser.add_argument("--random_images", type=int, default=6000, help="to draw beside the real ones")
    parser.add_argument("--conditional", type=int, default=8000, help="conditional edits")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--eval_every", type=int, default=650)
    parser.add_argument("--eval_items", type=int, default=40, help="items of each kind, on training images")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def make_pool(model: BagelForConditionalGeneration, options: argparse.Namespace) -> Pool:
    """The images of the first base, and behind them the targets of conditional edits."""
    drawn = draw_pictures(options.seed, options.random_images)
    kept = options.output_dir / "conditional.pt"
    if not kept.exists():
        torch.save(first_grasp(options.conditional), kept)
    grasp = torch.load(kept, weights_only=True)
    number_of = {image.tobytes(): number for number, image in enumerate(drawn.pictures[: len(drawn.questions)])}
    sources = [number_of[image.numpy().tobytes()] for image in grasp["sources"]]
    behind = range(len(drawn.pictures), len(drawn.pictures) + len(sources))
    pictures = np.concatenate([drawn.pictures, grasp["targets"].numpy()])
    latents = options.output_dir / "latents.safetensors"
    if not latents.exists():
        save_file({"latents": encode(model, pictures).contiguous()}, latents)
    return Pool(
        pictures,
        [*drawn.scenes, *[()] * len(sources)],  # none of them is a single shape to ask about or to draw
        load_file(latents)["latents"],
        drawn.edits,
        drawn.questions,
        list(zip(sources, behind, grasp["instructions"])),
        list(zip(sources, grasp["questions"], grasp["answers"])),
        list(zip(sources, grasp["instructions"], grasp["plans"])),
        list(zip(sources, behind, grasp["plans"])),
    )


def first_grasp(count: int) -> dict[str, torch.Tensor | list[str]]:
    """Edits with one condition of training images: `sources` and `targets`, uint8 (n, 64, 64, 3), `instructions` and
    `plans`, and the `questions` that the conditions ask with their `answers`."""
    records, plans = (
        [record for record in each if isinstance(record, Record)]
        for each in (
            intelligent_edits(
                load_easy_vqa("train"), seed=FIRST_GRASP_SEED, size=count, shares=FIRST_GRASP, asking=asking
            )
            for asking in ("question", "plan")
        )
    )
    images = {
        name: torch.from_numpy(np.stack([np.asarray(open_image(getattr(each, f"{name}_image"))) for each in records]))
        for name in ("source", "target")
    }
    return {
        "sources": images["source"],
        "targets": images["target"],
        "instructions": [record.instruction for record in records],
        "plans": [record.instruction for record in plans],
        "questions": [record.question for record in records],
        "answers": [record.answer for record in records],
    }


def train_figures(pipe: UniEditPipeline, count: int) -> dict[str, float]:
    """The percentage that is right, by group, of the suite's items on training images."""
    items = test_items(count, "train")
    items = [*items, *planned(items)]
    right = [score(item, output).right for item, output in zip(items, outputs_of(pipe, items))]
    return {name: round(100 * float(np.mean([right[i] for i in at])), 1) for name, at in groups(items).items()}


if __name__ == "__main__":
    main()
