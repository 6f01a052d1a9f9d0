"""Tunes BAGEL with LoRA adapters on a data set in the columns of uniedit-148k.

    python examples/train.py --model ByteDance-Seed/BAGEL-7B-MoT --dataset uniedit-148k --output_dir runs/lora

The plan for the 7B model and packs of 11,520 tokens is 33.9 GiB with LoRA and 16.4 GiB with --load_in_4bit. Tuning all
weights takes 67.6 GiB with 4-bit optimizer states (`examples/train/bagel_full.yaml`). These numbers are planned, not
measured: `uniedit train --model_name_or_path MODEL --plan` prints them for your model and your card.
"""

from __future__ import annotations

import argparse

from peft import LoraConfig

from uniedit_hf import UniEditConfig, UniEditTrainer
from uniedit_hf.hub import load_split
from uniedit_hf.training.quantization import quantized_weights


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tune a model with LoRA adapters.")
    parser.add_argument("--model", default="ByteDance-Seed/BAGEL-7B-MoT", help="Hub id or folder")
    parser.add_argument("--dataset", default="uniedit-148k", help="Hub id, folder, or CSV, JSON Lines or Parquet file")
    parser.add_argument("--output_dir", default="runs/lora")
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--max_tokens_per_pack", type=int, default=11520, help="fewer take less memory")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--load_in_4bit", action="store_true", help="QLoRA; needs a GPU and uniedit_hf[quantization]")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    trainer = UniEditTrainer(
        args.model,
        UniEditConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            max_tokens_per_pack=args.max_tokens_per_pack,
            learning_rate=2e-4,  # adapters take about ten times the rate of the weights
            report_to="none",
        ),
        train_dataset=load_split(args.dataset),
        quantization_config=quantized_weights(4, "bfloat16") if args.load_in_4bit else None,
        peft_config=LoraConfig(r=args.lora_r, lora_alpha=2 * args.lora_r),
    )
    trainer.train()
    trainer.save_model()
    print(f"The adapters are in {args.output_dir}; UniEditPipeline.from_pretrained loads them.")


if __name__ == "__main__":
    main()
