"""Edits an image by an instruction.

    python examples/edit.py --image shop.jpg --instruction "Repaint the door in the color the sign names."

On a GPU, BAGEL-7B needs 27.5 GiB for its weights in bfloat16 (calculated), and more to draw. The same seed gives
the same edit.
"""

from __future__ import annotations

import argparse

import torch

from uniedit_hf import UniEditPipeline


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Edit an image by an instruction.")
    parser.add_argument("--model", default="Uni-Edit/Uni-Edit-BAGEL", help="Hub id or folder")
    parser.add_argument("--image", required=True, help="file of the source image")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--output", default="edited.png", help="file of the edit")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--steps", type=int, help="of the sampler; the model's default if not set (BAGEL only)")
    parser.add_argument("--thinking_budget", type=int, default=0, help="tokens of reasoning before the edit")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = UniEditPipeline.from_pretrained(args.model, dtype=dtype, device_map=device)
    settings = {} if args.steps is None else {"num_timesteps": args.steps}
    edited = pipe.edit(args.image, args.instruction, seed=args.seed, thinking_budget=args.thinking_budget, **settings)
    edited.save(args.output)
    print(f"The edit is in {args.output}.")


if __name__ == "__main__":
    main()
