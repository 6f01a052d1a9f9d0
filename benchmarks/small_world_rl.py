"""Reinforcement learning on intelligent edits in the small world: `python -m benchmarks.small_world_rl --seeds 5`.

Begins at a base, draws intelligent edits of training images, rewards them with the small world's reader, and measures
on test items before and after: intelligent edits that change something and that do not, plain edits, questions and
drawings, all edits from the understanding view. Prints a table with 95 % paired bootstrap intervals over items of the
mean of the seeds, and writes `table.json`, `curves.json`, `scores-SEED.json` and `figure.png`.

The check for reward hacking asks another judge than the reward: pixels. `hacked` counts edits that the reader calls
right although fewer than half of the pixels to change look as in the target, or fewer than nine of ten others as in
the source.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from uniedit_hf.arithmetic import best_arithmetic
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.evaluation.scorers.pixels import score_edit as pixel_scores
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.segments import UNDERSTANDING
from uniedit_hf.small_world.quickstart.edit_data import data_folder, intelligent_settings, load_edits
from uniedit_hf.small_world.quickstart.tuning import base_folder
from uniedit_hf.small_world.suite import DRAWING_SETTINGS, batches, score
from uniedit_hf.small_world.suite_items import SmallWorldItem, test_items
from uniedit_hf.synthesis.run import run as synthesize
from uniedit_hf.training.grpo import UniEditGRPOConfig, UniEditGRPOTrainer


GROUPS = ("intelligent, to change", "intelligent, to leave", "plain", "understanding", "generation")
UNGUIDED = {"text_guidance_scale": 1.0, "image_guidance_scale": 1.0}
# What the run draws with, and what edits are measured with. Guidance is off in both.
DRAWING = {"bagel": {"num_timesteps": 8}, "janus": {"temperature": 1.0}}
MEASURING = {"bagel": UNGUIDED | {"num_timesteps": 12}, "janus": UNGUIDED | {"temperature": 0.5}}


def group_of(item: SmallWorldItem) -> str:
    """The group of the table that an item counts for."""
    if item.kind != "intelligent":
        return "plain" if item.ability == "editing" else item.ability
    same = item.source.tobytes() == item.expected.tobytes()
    return f"intelligent, to {'leave' if same else 'change'}"


def answers_and_images(pipeline: UniEditPipeline, items: Sequence[SmallWorldItem]) -> list[Any]:
    """The output of a model for every item."""
    family, made = pipeline.model.config.model_type, [None] * len(items)
    for batch in batches(items, pipeline.batch_size):
        asked = [items[index] for index in batch]
        sources, prompts = [each.source for each in asked], [each.prompt for each in asked]
        seeds = [each.noise_seed() for each in asked]
        if asked[0].ability == "understanding":
            found = pipeline.answer(sources, prompts, max_new_tokens=6)
        elif asked[0].ability == "generation":
            found = pipeline.generate(prompts, seed=seeds, **DRAWING_SETTINGS[family])
        else:
            views = {"source_views": [UNDERSTANDING]}
            found = pipeline.edit(sources, prompts, seed=seeds, **views, **MEASURING[family])
        for index, output in zip(batch, found):
            made[index] = output
    return made


def measured(model, processor, items: Sequence[SmallWorldItem]) -> dict[str, Any]:
    """Scores of all items, and which edits only look right."""
    model.eval()
    outputs = answers_and_images(UniEditPipeline(model, processor, batch_size=32), items)
    scores = [float(score(item, output).right) for item, output in zip(items, outputs)]
    hacked = [right == 1 and _only_looks_right(item, output) for item, output, right in zip(items, outputs, scores)]
    return {"scores": scores, "hacked": hacked}


def _only_looks_right(item: SmallWorldItem, output: Any) -> bool:
    if item.ability != "editing":
        return False
    pixels = pixel_scores(Image.fromarray(np.asarray(output)), item.source, item.expected)
    success, kept = pixels["success"], pixels["preservation"]
    return (success is not None and success < 0.5) or (kept is not None and kept < 0.9)


def train(base: Path, data, folder: Path, seed: int, options: argparse.Namespace):
    """The trainer after its run."""
    arithmetic, family = best_arithmetic(), json.loads((base / "config.json").read_text())["model_type"]
    drawing = DRAWING[family] | json.loads(options.generation_kwargs)
    args = UniEditGRPOConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=options.steps,
        objective=options.objective,
        learning_rate=options.learning_rate,
        warmup_steps=10,
        max_grad_norm=options.max_grad_norm,
        num_generations=options.num_generations,
        generation_batch_size=options.num_generations * options.prompts,
        steps_per_generation=options.steps_per_generation,
        reward_weights=options.reward_weights,
        beta=options.beta,
        freeze_und=options.freeze_und,
        generation_kwargs=drawing,
        rollout_batch_size=64,
        max_tokens_per_pack=60_000,
        activation_checkpointing=False,
        logging_steps=5,
        log_completions=True,
        save_strategy="no",
        report_to="none",
        use_cpu=arithmetic.device == "cpu",
        bf16=arithmetic.dtype == torch.bfloat16,
        model_init_kwargs={"attn_implementation": "eager"},
    )
    trainer = UniEditGRPOTrainer(str(base), options.rewards, args, data)
    begun = time.process_time()
    trainer.train()
    print(f"seed {seed}: {time.process_time() - begun:.0f} s of CPU", flush=True)
    return trainer


def the_items(options: argparse.Namespace) -> list[SmallWorldItem]:
    """Intelligent edits, and a share of the other items."""
    items = test_items(options.items, options.split)
    others = [item for item in items if item.kind != "intelligent"]
    step = max(1, len(others) // options.other_items)
    return [item for item in items if item.kind == "intelligent"] + others[::step]


def table(items: Sequence[SmallWorldItem], before: dict, after: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """By group the share that is right before and after, and the difference with its interval."""
    groups = [group_of(item) for item in items]
    rows = {}
    for name in GROUPS:
        places = [index for index, group in enumerate(groups) if group == name]
        if not places:
            continue
        old = [before["scores"][index] for index in places]
        new = [float(np.mean([run["scores"][index] for run in after])) for index in places]
        difference, low, high = paired_difference(new, old)
        rows[name] = {
            "items": len(places), "before": float(np.mean(old)), "after": float(np.mean(new)),
            "difference": difference, "ci95": [low, high],
            "seeds": [float(np.mean([run["scores"][index] for index in places])) for run in after],
            "hacked before": sum(before["hacked"][index] for index in places),
            "hacked": [sum(run["hacked"][index] for index in places) for run in after],
        }  # fmt: skip
    return rows


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("| items | n | before, % | after, % | difference, points | 95 % interval | hacked |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        low, high = (f"{100 * each:+.1f}" for each in row["ci95"])
        hacked = f"{row['hacked before']} to {np.mean(row['hacked']):.1f}"
        numbers = f"{100 * row['before']:.1f} | {100 * row['after']:.1f} | {100 * row['difference']:+.1f}"
        print(f"| {name} | {row['items']} | {numbers} | {low} to {high} | {hacked} |", flush=True)


def draw_figure(rows: dict[str, dict[str, Any]], curves: Sequence[Sequence[dict]], path: Path) -> None:
    """The rewards over the steps, one line for each seed, and what is right before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for curve in curves:
        left.plot([log["step"] for log in curve], [log["reward"] for log in curve], linewidth=1.6)
    left.set_xlabel("step")
    left.set_ylabel("reward")
    places = np.arange(len(rows))
    for shift, name in ((-0.2, "before"), (0.2, "after")):
        right.bar(places + shift, [100 * row[name] for row in rows.values()], 0.4, label=name)
    errors = np.abs(np.array([[100 * (row["difference"] - each) for each in row["ci95"]] for row in rows.values()]).T)
    after = [100 * row["after"] for row in rows.values()]
    right.errorbar(places + 0.2, after, yerr=errors, fmt="none", ecolor="black", linewidth=1)
    right.set_xticks(places, [name.replace(", ", ",\n") for name in rows], fontsize=8)
    right.set_ylabel("right, %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/small_world_rl"))
    parser.add_argument("--base")
    parser.add_argument("--model", default="bagel", choices=("bagel", "janus"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--objective", choices=("nft", "grpo"))
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps_per_generation", type=int, default=1)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--freeze_und", action="store_true")
    parser.add_argument("--rewards", nargs="+", default=["small_world", "small_world_parts"])
    parser.add_argument("--reward_weights", nargs="+", type=float)
    parser.add_argument("--generation_kwargs", default="{}", help="JSON")
    parser.add_argument("--edits", type=int, default=2000, help="edits of training images to draw prompts from")
    parser.add_argument("--depth", type=int, help="only instructions with so many conditions")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--other_items", type=int, default=600)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    return parser.parse_args()


def main() -> None:
    options = parsed()
    base = base_folder(options.base, options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "options.json").write_text(json.dumps(vars(options), default=str, indent=1))
    if not data_folder(options.out.parent / "edits", "intelligent").exists():
        synthesize(intelligent_settings(options.out.parent / "edits" / "intelligent", seed=0, size=options.edits))
    data = load_edits(options.out.parent / "edits", "intelligent")
    if options.depth is not None:
        wanted = f"depth={options.depth},"
        data = data.filter(lambda variant: variant.startswith(wanted), input_columns="variant")
    items, after, curves = the_items(options), [], []
    pipeline = UniEditPipeline.from_pretrained(base, attn_implementation="eager", dtype=best_arithmetic().dtype)
    before = measured(pipeline.model, pipeline.processor, items)
    print_table(table(items, before, [before]))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        trainer = train(base, data, options.out / f"seed-{seed}", seed, options)
        model = trainer.model.to(best_arithmetic().dtype)
        after.append(measured(model, trainer.processing_class, items))
        curves.append([log for log in trainer.state.log_history if "reward" in log])
        (options.out / "curves.json").write_text(json.dumps(curves))
        (options.out / f"scores-{seed}.json").write_text(json.dumps({"before": before, "after": after[-1]}))
        rows = table(items, before, after)
        (options.out / "table.json").write_text(json.dumps(rows, indent=1))
        print_table(rows)
        draw_figure(rows, curves, options.out / "figure.png")


if __name__ == "__main__":
    main()
