"""GenEval's detector and colors, on transformers: Mask2Former finds objects, CLIP names their colors.

transformers' own post-processing reads boxes from masks of 384 x 384; here masks are scaled to the image size first,
as in the benchmark's mmdet. The weights differ from mmdet's, so the numbers are not those of the official script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from uniedit_hf.evaluation.items import local_file
from uniedit_hf.evaluation.scorers.geneval_scores import COLORS, Detection


DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
MOST = 100  # instances in an image
SHORTEST, LONGEST = 800, 1333  # edges of the detector's input in the benchmark
GREY = (153, 153, 153)
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class Detector:
    """Finds objects of the benchmark's classes.

    Args:
        model: Hub id or folder of a Mask2Former for instances.
        class_names: The benchmark's file of names, one per line, in the order of the model's classes: GenEval renames
            some of COCO's, so they are matched by position.
        device: The device it runs on.
        shortest: Shortest edge in pixels to which an image is scaled; the benchmark's by default.

    Raises:
        ValueError: If the number of names is not the number of the model's classes.
    """

    def __init__(self, model: str, class_names: str, device: str = "cpu", shortest: int = SHORTEST):
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.model = Mask2FormerForUniversalSegmentation.from_pretrained(model).eval().to(device)
        size = {"shortest_edge": shortest, "longest_edge": shortest * LONGEST // SHORTEST}
        self.processor = AutoImageProcessor.from_pretrained(model, size=size, size_divisor=32)
        self.names = local_file(class_names).read_text(encoding="utf-8").split("\n")
        self.names = [name.strip() for name in self.names if name.strip()]
        if len(self.names) != self.model.config.num_labels:
            raise ValueError(
                f"The detector {model} has {self.model.config.num_labels} classes, but {class_names} names "
                f"{len(self.names)}: give the list of names that belongs to it."
            )

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> dict[str, list[Detection]]:
        """All objects by class, best first, with any score."""
        inputs = self.processor(image, return_tensors="pt").to(self.model.device)
        output = self.model(**inputs)
        classes, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
        padded = inputs["pixel_values"].shape[-2:]
        return instances(classes, masks, image.size, padded, inputs["pixel_mask"][0], self.names)


def instances(classes, masks, size: tuple[int, int], padded: Sequence[int], valid, names: list[str]) -> dict:
    """Detections from a model's output.

    Shapes: classes (queries, classes + 1), masks (queries, height / 4, width / 4) logits; valid (height, width) is 1
    where the padded input shows the image. `size` is the image's (width, height).
    """
    shares = classes.float().softmax(-1)[:, :-1]
    best = shares.flatten().topk(min(MOST, shares.numel()))
    height, width = int(valid[:, 0].sum()), int(valid[0].sum())
    found = defaultdict(list)
    for share, flat in zip(best.values.tolist(), best.indices.tolist()):
        query, label = divmod(flat, shares.shape[1])
        logits = F.interpolate(masks[query].float()[None, None], tuple(padded), mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        logits = F.interpolate(logits, size[::-1], mode="bilinear", align_corners=False)[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        score = share * float(logits.sigmoid()[mask].mean())
        rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        found[names[label]].append(Detection(box, score, mask.cpu().numpy()))
    return {name: sorted(each, key=lambda one: -one.score) for name, each in found.items()}


class ColorReader:
    """Names the color of detected objects with CLIP: the object, cut out on gray, against three texts per color.

    Args:
        model: Hub id or folder of a CLIP model.
        device: The device it runs on."""

    def __init__(self, model: str = CLIP, device: str = "cpu"):
        from transformers import AutoProcessor, CLIPModel

        self.model = CLIPModel.from_pretrained(model).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(model)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, detections: Sequence[Detection], name: str) -> list[str]:
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        crops = [cut_out(image, each) for each in detections]
        inputs = self.processor(text=texts, images=crops, return_tensors="pt", padding=True, truncation=True)
        output = self.model(**inputs.to(self.model.device))
        by_color = F.normalize(output.text_embeds, dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
        likeness = F.normalize(output.image_embeds, dim=-1) @ F.normalize(by_color, dim=-1).T
        return [COLORS[index] for index in likeness.argmax(-1).tolist()]


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """The object on a gray background, cropped to its box."""
    pixels = np.where(detection.mask[:, :, None], np.asarray(image.convert("RGB")), np.uint8(GREY))
    return Image.fromarray(pixels.astype(np.uint8)).crop(detection.box)
