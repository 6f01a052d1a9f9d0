"""Tunes a model on your own edits and measures the loss on held-out rows before and after.

    python examples/train_own_dataset.py --rows edits/rows.csv --output_dir runs/own

`docs/own_data.md` says what a row needs. LoRA on BAGEL-7B is planned at 33.9 GiB with packs of 11,520 tokens; this is
not measured.
"""

from __future__ import annotations

import argparse

from peft import LoraConfig

from uniedit_hf import UniEditConfig, UniEditTrainer
from uniedit_hf.hub import load_split


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tune a model on your own edits.")
    parser.add_argument("--model", default="ByteDance-Seed/BAGEL-7B-MoT", help="Hub id or folder")
    parser.add_argument("--rows", required=True, help="CSV, JSON Lines or Parquet file, or a folder of Parquet")
    parser.add_argument("--test_rows", type=int, default=8, help="number of rows held out of training")
    parser.add_argument("--output_dir", default="runs/own")
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--max_tokens_per_pack", type=int, default=11520, help="fewer take less memory")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    rows = load_split(args.rows)
    if not 0 < args.test_rows < len(rows):
        raise SystemExit(
            f"{args.rows} has {len(rows)} rows: keep out at least 1 and fewer than that with --test_rows."
        )
    parts = rows.train_test_split(args.test_rows, seed=0)
    trainer = UniEditTrainer(
        args.model,
        UniEditConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            max_tokens_per_pack=args.max_tokens_per_pack,
            learning_rate=2e-4,  # adapters take about ten times the rate of the weights
            report_to="none",
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        peft_config=LoraConfig(r=16, lora_alpha=32),
    )
    before = trainer.evaluate()["eval_image_loss"]  # new adapters change nothing, so this is the base model
    trainer.train()
    after = trainer.evaluate()["eval_image_loss"]
    trainer.save_model()
    print(f"Loss on {args.test_rows} held-out rows: {before:.4f} before, {after:.4f} after. Model: {args.output_dir}.")


if __name__ == "__main__":
    main()
