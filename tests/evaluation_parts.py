"""What the tests of `uniedit evaluate` and of the plug-in for lmms-eval share: small detectors, and prompt files in
the format of every benchmark with rows of our own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from tests.tiny_models import picture, tiny_tokenizer
from uniedit_hf.evaluation.scorers.gedit_scores import GROUPS


GENEVAL = Path(__file__).parent / "fixtures" / "geneval" / "metadata.jsonl"
CLASS_NAMES = ("bench", "clock", "fire hydrant", "dog", "teddy bear")


def write_detector(folder: Path) -> None:
    """A Mask2Former, a CLIP and the names of their classes."""
    save_detector(folder / "detector")
    save_clip(folder / "clip")
    (folder / "names.txt").write_text("\n".join(CLASS_NAMES) + "\n")


def save_detector(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6, num_labels=5,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor().save_pretrained(folder)


def save_clip(folder: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = tiny_tokenizer()
    text = small | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 1}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def write_benchmarks(folder: Path) -> None:
    """Prompt files and images; `geneval.json` is the fixture's rows."""
    for name in ("a.png", "b.png", "color_change/1.png", "biology/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture(40, 32, seed=len(name)).save(folder / name)
    files = {
        "wise": [
            {"Prompt": f"paint the {word} square", "Explanation": word, "Subcategory": sub, "prompt_id": n}
            for n, word, sub in (
                (1, "red", ""), (401, "blue", ""), (705, "green", ""), (999, "bigger", ""),
                (402, "two", "Horizontal time"),
                (801, "circle", ""),
            )
        ],
        "imgedit": {
            key: {"id": f"{key}.png", "prompt": "make it red", "edit_type": kind}
            for key, kind in (("a", "add"), ("b", "style"))
        },
        "rise": [
            {"index": "t_1", "category": "temporal_reasoning", "instruction": "make it bigger", "image": "a.png",
             "reference": "it is bigger", "consistency_free": True, "subtask": "growth"},
            {"index": "c_1", "category": "causal_reasoning", "instruction": "paint it", "image": "b.png",
             "reference_img": "a.png"},
            {"index": "l_1", "category": "logical_reasoning", "instruction": "is this two", "image": "a.png",
             "reference_txt": "two"},
        ],
        "kris": [
            {"id": "1", "type": "color_change", "ori_img": "1.png", "ins_en": "paint it red", "explain_en": "red"},
            {"id": "2", "type": "biology", "ori_img": "2.png", "ins_en": "make it green", "explain_en": "green"},
            {"id": "3", "type": "multi-element_composition", "ori_img": ["1.png", "2.png"], "ins_en": "x"},
        ],
    }  # fmt: skip
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "geneval.json").write_text(
        json.dumps([json.loads(row) for row in GENEVAL.read_text().splitlines()[::2]])
    )
    rows = [
        {"key": f"{number:02d}", "task_type": kind, "instruction": "make it blue", "instruction_language": "en",
         "input_image_raw": {"bytes": (folder / f"{'ab'[number % 2]}.png").read_bytes(), "path": None},
         "Intersection_exist": True}
        for number, kind in enumerate(GROUPS)
    ]  # fmt: skip
    (folder / "gedit").mkdir()
    Dataset.from_list(rows).to_parquet(folder / "gedit" / "train.parquet")
