"""Compares a tuned model with its base on rows of your own: the same edits, the same seeds, pixel by pixel.

    python examples/evaluate.py --base ByteDance-Seed/BAGEL-7B-MoT --tuned runs/own --rows edits/test.csv

Use rows that the model was not tuned on. `success` is the share of pixels that the edit changes and that are as in the
target; `preservation` is the share of all others that are as in the source. Pixels suit edits with one right result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from uniedit_hf import UniEditPipeline
from uniedit_hf.evaluation.intervals import paired_difference
from uniedit_hf.evaluation.scorers.pixels import score_edit
from uniedit_hf.hub import load_split
from uniedit_hf.images import open_image


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare a tuned model with its base on your rows.")
    parser.add_argument("--base", default="ByteDance-Seed/BAGEL-7B-MoT", help="Hub id or folder")
    parser.add_argument("--tuned", required=True, help="Hub id or folder")
    parser.add_argument("--rows", required=True, help="CSV, JSON Lines or Parquet file, or a folder of Parquet")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="folder of the edits")
    parser.add_argument("--steps", type=int, help="of the sampler; the model's default if not set (BAGEL only)")
    return parser.parse_args()


def scores(model: str, rows, folder: Path, settings: dict) -> list[dict]:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = UniEditPipeline.from_pretrained(model, dtype=dtype, device_map=device)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, row in enumerate(rows):
        edited = pipe.edit(row["source_image"], row["instruction"], seed=number, **settings)
        edited.save(folder / f"{row['id']}.png")
        source, target = (open_image(row[name]).resize(edited.size) for name in ("source_image", "target_image"))
        found.append(score_edit(edited, source, target))
    return found


def main() -> None:
    args = arguments()
    rows, settings = load_split(args.rows), {} if args.steps is None else {"num_timesteps": args.steps}
    base, tuned = (scores(getattr(args, name), rows, args.output_dir / name, settings) for name in ("base", "tuned"))
    for name in ("success", "preservation"):
        pairs = [(one[name], other[name]) for one, other in zip(tuned, base) if one[name] is not None]
        if pairs:
            difference, low, high = paired_difference(*zip(*pairs))
            print(f"{name}: tuned - base {difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), n {len(pairs)}")


if __name__ == "__main__":
    main()
