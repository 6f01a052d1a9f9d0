"""Edits of test pictures by the base and the tuned model, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.synthesis.easy_vqa import load_easy_vqa
from uniedit_hf.synthesis.pipeline import intelligent_edits
from uniedit_hf.synthesis.records import Record


NUM_EXAMPLES = 12
NUM_TIMESTEPS = 20


@dataclass
class Example:
    """One test picture with its instruction, what the models made of it, and what was meant."""

    instruction: str
    source: Image.Image
    base: Image.Image
    tuned: Image.Image
    target: Image.Image


def draw_examples(base: Path, tuned: Path, *, seed: int, count: int = NUM_EXAMPLES) -> list[Example]:
    """Edits test pictures after instructions that no training picture has seen."""
    records = [
        result
        for result in intelligent_edits(load_easy_vqa("test"), seed=seed, size=count)
        if isinstance(result, Record)
    ]
    drawn = {name: _edits(folder, records) for name, folder in (("base", base), ("tuned", tuned))}
    return [
        Example(
            instruction=record.instruction,
            source=_open(record.source_image),
            base=drawn["base"][index],
            tuned=drawn["tuned"][index],
            target=_open(record.target_image),
        )
        for index, record in enumerate(records)
    ]


def _edits(folder: Path, records: list[Record]) -> list[Image.Image]:
    pipeline = UniEditPipeline.from_pretrained(folder)
    return pipeline.edit(
        [_open(record.source_image) for record in records],
        [record.instruction for record in records],
        seed=list(range(len(records))),
        num_timesteps=NUM_TIMESTEPS,
        source_views=("vit",),
        text_guidance_scale=2.5,
        image_guidance_scale=1.0,
    )


def _open(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")
