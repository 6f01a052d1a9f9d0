"""The cost of faster, inexact drawing in the small world: `python -m benchmarks.shortcuts [--items 100]`.

The small base draws and edits test items exactly and with every shortcut. Prints one JSON line per shortcut. Passes
are the tokens times layers that went through the decoder, in percent of the exact ones. The distance is that of the
latents from the exact ones, relative to the distance from their noise, as a mean over items. Shares of right drawings
and plain edits have 95 % intervals. Seconds on a GPU are measured by `benchmarks.gpu_inference`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from uniedit_hf.models.bagel import denoising_bagel
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.base.base_items import drawing_items, plain_edit_items
from uniedit_hf.small_world.base.measure import summary
from uniedit_hf.small_world.base.scenes import real_scenes
from uniedit_hf.small_world.scene import render
from uniedit_hf.small_world.scoring import score_drawing, score_edit


DENOISE = denoising_bagel.denoise
TIMESTEPS = 25
GUIDED = {"text_guidance_scale": 2.5, "guidance_interval": (0.0, 1.0)}


def nothing(pipe: UniEditPipeline) -> UniEditPipeline:
    """The pipeline as it is."""
    return pipe


def quantized(kind: str) -> Callable[[UniEditPipeline], UniEditPipeline]:
    """Rounds the weights of the decoder's layers as torchao does."""

    def change(pipe: UniEditPipeline) -> UniEditPipeline:
        from torchao import quantization

        configs = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}
        quantization.quantize_(pipe.model.model.language_model.layers, configs[kind]())
        return pipe

    return change


def four_bits(pipe: UniEditPipeline) -> UniEditPipeline:
    """Rounds the weights of the decoder's layers to bitsandbytes' nf4 and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for module in pipe.model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = dequantize_4bit(*quantize_4bit(module.weight.data, quant_type="nf4")).float()
    return pipe


# name: settings of a request, and what is done to the pipeline
SHORTCUTS: dict[str, tuple[dict, Callable]] = {
    "exact": ({}, nothing),
    "compute_every=2": ({"compute_every": 2}, nothing),
    "compute_every=3": ({"compute_every": 3}, nothing),
    "compute_every=4": ({"compute_every": 4}, nothing),
    "guidance_every=2": ({"guidance_every": 2}, nothing),
    "guidance_every=3": ({"guidance_every": 3}, nothing),
    "compute_every=2, guidance_every=2": ({"compute_every": 2, "guidance_every": 2}, nothing),
    "first_layer_threshold=0.02": ({"first_layer_threshold": 0.02}, nothing),
    "first_layer_threshold=0.05": ({"first_layer_threshold": 0.05}, nothing),
    "first_layer_threshold=0.1": ({"first_layer_threshold": 0.1}, nothing),
    "first_layer_threshold=0.2": ({"first_layer_threshold": 0.2}, nothing),
    "guidance_interval=(0.4, 1)": ({"guidance_interval": (0.4, 1.0)}, nothing),
    "euler, 13 timesteps": ({"num_timesteps": 13}, nothing),
    "unipc, 13 timesteps": ({"num_timesteps": 13, "sampler": "unipc"}, nothing),
    "heun, 13 timesteps": ({"num_timesteps": 13, "sampler": "heun"}, nothing),
    "euler, 9 timesteps": ({"num_timesteps": 9}, nothing),
    "unipc, 9 timesteps": ({"num_timesteps": 9, "sampler": "unipc"}, nothing),
    "heun, 7 timesteps": ({"num_timesteps": 7, "sampler": "heun"}, nothing),
    "autoencoder in bf16": ({}, lambda pipe: pipe.set_autoencoder(torch.bfloat16)),
    "weights in int8": ({}, quantized("int8")),
    "weights in fp8": ({}, quantized("fp8")),
    "weights in nf4": ({}, four_bits),
}


class Watch:
    """The last latents of every request, as they moved from their noise, and the work of the decoder's layers."""

    def __init__(self, pipe: UniEditPipeline):
        self.pipe, self.moves, self.passes = pipe, [], 0
        denoising_bagel.denoise = self._denoise

    def _denoise(self, decoder, experts, regions, branches, gen) -> torch.Tensor:
        self.passes += len(gen) * len(experts)
        return DENOISE(decoder, experts, regions, branches, gen)

    def __call__(self, pipe, index, timestep, shown) -> None:
        if index + 1 < shown["num_steps"]:
            return
        for latents in shown["latents"]:
            generator = torch.Generator().manual_seed(len(self.moves) % self.items)
            self.moves.append(latents - torch.randn(latents.shape, generator=generator))


def measure(folder: Path, name: str, count: int) -> tuple[dict, list[torch.Tensor], int]:
    """Scores of one shortcut, how every latent moved, and the passes."""
    settings, change = SHORTCUTS[name]
    pipe = change(UniEditPipeline.from_pretrained(folder, batch_size=25))
    watch = Watch(pipe)
    watch.items = count
    images, scenes = real_scenes("test")
    options = {"num_timesteps": TIMESTEPS, "seed": list(range(count)), "callback_on_step_end": watch}
    options |= GUIDED | settings
    drawings = drawing_items(scenes, count, random.Random(0))
    drawn = pipe.generate([item.prompt for item in drawings], **options)
    right = summary([score_drawing(image, item.drawing) for image, item in zip(drawn, drawings)])["all"]
    edits = plain_edit_items(scenes, count, random.Random(0))
    sources = [Image.fromarray(images[item.image]) for item in edits]
    options |= {"source_views": ("vae", "vit"), "image_guidance_scale": 1.0}
    edited = pipe.edit(sources, [item.instruction for item in edits], **options)
    scores = [score_edit(image, *each) for image, *each in zip(edited, sources, [render(*i.target) for i in edits])]
    return {"drawings": right, "edits": summary(scores)["all"]}, watch.moves, watch.passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("assets/small_bagel"))
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=list(SHORTCUTS), choices=list(SHORTCUTS), metavar="NAME")
    options = parser.parse_args()
    of_exact = measure(options.model, "exact", options.items)
    _, exact, passes = of_exact
    for name in options.only:
        try:
            scores, moves, own = of_exact if name == "exact" else measure(options.model, name, options.items)
        except ImportError as error:
            print(json.dumps({"shortcut": name, "left out": str(error)}), flush=True)
            continue
        distances = [((a - b).norm() / b.norm()).item() for a, b in zip(moves, exact)]
        distance = sum(distances) / len(distances)
        row = {"shortcut": name, "passes_percent": round(100 * own / passes, 1), "distance": round(distance, 4)}
        print(json.dumps(row | scores), flush=True)


if __name__ == "__main__":
    main()
