"""Puts a trained base model where the project ships it: weights, processor, card, training log.

    python examples/small_world/publish.py --vae runs/small_world/vae --base runs/small_world/base

The card's figures are measured here, so that they belong to the files beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from measure import IMAGE_GUIDANCE, NUM_TIMESTEPS, TEXT_GUIDANCE, measure
from scenes import real_scenes

from uniedit_hf.pipeline import UniEditPipeline


ASSET = Path(__file__).resolve().parents[2] / "assets" / "small_bagel"
BANDS = {"understanding": (70, 95), "generation": (50, 95), "editing_vit": (30, 90)}
NAMES = {
    "understanding": "questions (open, yes/no and composed, a third each)",
    "generation": "drawings (shape, colour, size and place right)",
    "editing_vit": "plain edits, source by the ViT view",
    "editing_vae": "plain edits, source by the VAE view",
    "editing_both": "plain edits, source by both views",
}
CARD = """---
license: apache-2.0
library_name: uniedit_hf
pipeline_tag: image-text-to-image
---

# A small BAGEL for pictures of 64 x 64 pixels

A model of {millions:.1f} million parameters with BAGEL's architecture and all three of its abilities in the world of \
easy-VQA (one flat shape on a pastel background): it answers questions about a picture, draws one from a prompt, and \
edits one after a plain instruction. It is the base that `uniedit quickstart` tunes on intelligent edits, and it has \
seen none of those.

```python
from uniedit_hf import UniEditPipeline

pipe = UniEditPipeline.from_pretrained("assets/small_bagel")
picture = pipe.generate("a big red circle at the left", num_timesteps=20, text_guidance_scale=2.5)
pipe.answer(picture, "what color is the shape?")
settings = {{"num_timesteps": 20, "text_guidance_scale": 2.5, "image_guidance_scale": 1.0}}
pipe.edit(picture, "make it blue.", source_views=("vit",), **settings)
```

## How well it does

On easy-VQA's test pictures, none of which it was trained on; {steps} timesteps, text guidance {text}, image guidance \
{image}. A result is right if all of it is right; places may be off by 6 pixels and sizes by 3 in edits, \
and a drawing by 2 pixels from the range that its prompt states. The bands were stated before the training.

| ability | right, % | 95 % interval | items | band |
|---|---|---|---|---|
{rows}

The autoencoder alone: PSNR {psnr:.1f} dB on {images} test pictures; the reader that scores everything finds the same \
shape and colour after the round trip in {reader:.1f} %.

All parts and kinds are in `figures.json`.

## How it was made

```
python examples/small_world/vae.py --output_dir runs/small_world/vae
python examples/small_world/base.py --vae runs/small_world/vae --output_dir runs/small_world/base
python examples/small_world/publish.py --vae runs/small_world/vae --base runs/small_world/base
```

Data: the 4,000 training pictures of [easy-VQA](https://pypi.org/project/easy-vqa/) (MIT), pictures of the same kind \
drawn from a seed, easy-VQA's training questions and questions, prompts and plain edits computed from the pictures. \
First the autoencoder; then its latents are kept and the ViT learns to read under supervision; then everything else \
learns answers, drawings, plain edits and redrawing together. The weights are the average of the last steps, in 16 \
bit. `training_log.jsonl` has the curves and the figures along the way. Trained on one thread of a shared machine, in \
pieces (the scripts resume).
{notes}
## Limits

A world of 64 pixels, one to four flat shapes, eight colours, {words} words: anything else is outside of what it can \
do. It shows how the machinery works, and what a tuning does to such a model; it is no evidence for the 7B model. \
The same pixel reader that scores it made its training data.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", type=Path, default=Path("runs/small_world/vae"))
    parser.add_argument("--base", type=Path, default=Path("runs/small_world/base"))
    parser.add_argument("--output_dir", type=Path, default=ASSET)
    parser.add_argument("--items", type=int, default=200, help="for each ability")
    parser.add_argument("--notes", type=Path, default=None, help="a text for the card: what else there is to say")
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    shutil.copytree(options.base / "model", options.output_dir)
    (options.output_dir / "model.safetensors").chmod(0o644)
    lines = [
        json.dumps({"part": part} | json.loads(line))
        for part, file in (("vae", options.vae / "log.jsonl"), ("base", options.base / "training_log.jsonl"))
        for line in file.read_text().splitlines()
    ]
    (options.output_dir / "training_log.jsonl").write_text("\n".join(lines) + "\n")
    pipe = UniEditPipeline.from_pretrained(options.output_dir, batch_size=50)
    figures = measure(pipe, *real_scenes("test"), options.items)
    (options.output_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    vae = json.loads((options.vae / "vae.json").read_text())
    notes = options.notes.read_text() if options.notes else ""
    (options.output_dir / "README.md").write_text(card(pipe, figures, vae, notes))
    print(json.dumps(figures))


def card(pipe: UniEditPipeline, figures: dict, vae: dict, notes: str) -> str:
    """The model card."""
    rows = []
    for ability, name in NAMES.items():
        total = figures[ability]["all"]
        band = "-".join(map(str, BANDS[ability])) if ability in BANDS else ""
        rows.append(
            f"| {name} | {total['percent']} | {total['ci95'][0]} to {total['ci95'][1]} | {total['n']} | {band} |"
        )
    return CARD.format(
        millions=sum(parameter.numel() for parameter in pipe.model.parameters()) / 1e6,
        steps=NUM_TIMESTEPS,
        text=TEXT_GUIDANCE,
        image=IMAGE_GUIDANCE,
        rows="\n".join(rows),
        psnr=vae["psnr"],
        images=vae["images"],
        reader=100 * vae["reader_right"],
        notes=notes and f"\n{notes.strip()}\n",
        words=len(pipe.processor.tokenizer),
    )


if __name__ == "__main__":
    main()
