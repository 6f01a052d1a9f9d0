"""Compares our BAGEL with numbers of the reference implementation: `python -m benchmarks.reference FOLDER`.

FOLDER holds a tiny checkpoint and what the reference computed from it (format: tests/fixtures/README.md). Prints one
JSON line with the largest relative error of each quantity and exits with 1 if one is over its tolerance or the greedy
answer differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from uniedit_hf.models.bagel.configuration_bagel import BagelConfig
from uniedit_hf.models.bagel.generation_bagel import ImageSettings
from uniedit_hf.models.bagel.image_processing_bagel import BagelImageProcessor, fit_size
from uniedit_hf.models.bagel.layouts_bagel import to_official
from uniedit_hf.models.bagel.modeling_bagel import BagelForConditionalGeneration
from uniedit_hf.models.bagel.processing_bagel import BagelProcessor
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


TOLERANCES = {
    "hidden": 1e-4,
    "text_loss": 1e-5,
    "image_loss": 1e-5,
    "grad_norm": 1e-3,
    "answer_logits": 1e-4,
    "latents": 1e-4,
    "images": 1e-4,
    "resize": 1e-4,
    "vae_encode": 1e-4,
    "vae_decode": 1e-4,
}

# Pillow 13, which drew the expected pixels, shrinks rows before columns where that is less work, and rounds in
# between; older ones always begin with the columns. Among the expected pixels this affects one image: its rows after
# shrinking.
ROWS_FIRST = {"0.small": 32}

# The image transforms whose pixels are in resize.safetensors: longest side at most, shortest at least, stride.
PIXEL_TRANSFORMS = {"small": (64, 32, 16), "patch14": (70, 28, 14)}


def as_in_pillow_13(result: str, pixels: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) to resize; where Pillow 13 begins with the rows and this one does not, with that done."""
    if result not in ROWS_FIRST or int(PIL.__version__.split(".")[0]) >= 13:
        return pixels
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((picture.width, ROWS_FIRST[result]), Image.Resampling.BICUBIC))


def relative_error(ours: torch.Tensor | float, reference: torch.Tensor | float, least: float = 0.0) -> float:
    """The largest difference, relative to the largest value of the reference, or to `least` if that is more.

    Equal values have no error, zeros neither. A NaN, another shape, or a value where the reference is all zero is
    infinite.
    """
    ours, reference = (torch.as_tensor(values, dtype=torch.float64) for values in (ours, reference))
    if ours.shape != reference.shape:
        return float("inf")
    if torch.equal(ours, reference):
        return 0.0
    error = ((ours - reference).abs().max() / reference.abs().max().clamp(min=least)).item()
    return error if error == error else float("inf")


class Reference:
    """A folder of reference numbers, the model it belongs to and a processor for its token ids."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = json.loads((folder / "reference.json").read_text())
        self.tensors = load_file(folder / "reference.safetensors")
        meta = json.loads((folder / "meta.json").read_text())
        config = BagelConfig.from_pretrained(folder)
        special, shape = meta["special"], meta["model"]
        config.bos_token_id, config.eos_token_id = special["bos"], special["eos"]
        config.vision_start_token_id, config.vision_end_token_id = special["soi"], special["eoi"]
        config.vae_config.scaling_factor = meta["ae"]["scale_factor"]
        config.vae_config.shift_factor = meta["ae"]["shift_factor"]
        config.connector_hidden_act, config.timestep_shift = shape["connector_act"], shape["timestep_shift"]
        self.model = BagelForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32)
        self.processor = BagelProcessor(
            BagelImageProcessor(
                vit_stride=config.vision_config.patch_size,
                vae_stride=8 * config.latent_patch_size,
                latent_channels=config.vae_config.z_channels,
            ),
            _tokenizer(config.text_config.vocab_size, special),
        )

    def image(self, key: str, view: str, **options) -> ImageSegment:
        """An image segment whose pixels are the reference's own."""
        return ImageSegment(self.tensors[key], view, **options)

    def sample(self, segments: list[dict]) -> Sample:
        """A training sample as the reference lists it."""
        made = []
        for segment in segments:
            if segment["type"] == "text":
                made.append(TextSegment(segment["ids"], loss=segment["loss"]))
            elif segment["type"] == "vit_image":
                made.append(self.image(segment["image"], "vit"))
            else:
                made.append(self.image(segment["image"], "vae", loss=segment["loss"]))
        return Sample(made)

    # --- the quantities -----------------------------------------------------------------------------------------

    def training(self) -> dict[str, float]:
        """Hidden states, both losses and the gradient norm of every parameter, over one pack."""
        facts, tensors = self.facts["train"], self.tensors
        pack = self.processor.pack([self.sample(each["segments"]) for each in facts["samples"]])
        views = [s for each in facts["samples"] for s in each["segments"] if s["type"] == "vae_image"]
        logits = torch.tensor([float("-inf") if s["timestep_logit"] is None else s["timestep_logit"] for s in views])
        if views:
            pack["timesteps"] = logits.sigmoid()
            pack["noise"] = list(tensors["train.noise"].split([len(noise) for noise in pack["noise"]]))
        features = {name: value for name, value in pack.items() if not name.startswith("num_")}
        self.model.zero_grad()
        losses = self.model(**features)
        (losses.text + losses.image).backward()
        with torch.no_grad():
            hidden = self.model.pack_hidden_states(**features)[0]
        norms = {
            to_official(name): parameter.grad.norm().item()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        expected = facts["grad_norm"]
        scale = max(expected.values())
        positions = relative_error(pack["position_ids"][0], tensors["train.position_ids"])
        return {
            "hidden": max(relative_error(hidden, tensors["train.hidden"]), positions),
            "text_loss": relative_error(losses.text.item(), facts["ce_mean"]),
            "image_loss": relative_error(losses.image.item(), facts["mse_mean"]),
            # a norm that is zero but for rounding is compared with the largest one
            "grad_norm": max(
                relative_error(norms.get(name, 0.0), norm, least=1e-4 * scale) for name, norm in expected.items()
            ),
        }

    def answer(self) -> tuple[dict[str, float], bool]:
        """Logits of a greedy answer, and whether the answer is the reference's own."""
        facts = self.facts["vqa"]
        context = Sample([self.image(facts["image"], "vit"), TextSegment(facts["question"])])
        inputs = self.processor(context)
        wanted, logits = facts["generated"][1:], self.tensors["vqa.logits"]
        # as many tokens as the reference has logits for, past the end of the answer if it went on there
        self.model.generation_config.eos_token_id = None
        output = self.model.generate(
            **inputs, max_new_tokens=len(logits), do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        written = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        error = relative_error(torch.cat(output.logits), logits)
        return {"answer_logits": error}, written[: len(wanted)] == wanted

    def drawing(self) -> dict[str, float]:
        """Latents and pixels of all guided runs, edits and drawings."""
        latents, images = 0.0, 0.0
        for facts in [*self.facts["edit"], *self.facts["t2i"]]:
            sources = [self.image(facts[f"{view}_image"], view) for view in ("vae", "vit") if f"{view}_image" in facts]
            context = Sample([*sources, TextSegment(facts["prompt"])])
            settings = ImageSettings(
                height=facts["height"],
                width=facts["width"],
                text_guidance_scale=facts["cfg_text_scale"],
                image_guidance_scale=facts["cfg_img_scale"],
                guidance_interval=tuple(facts["cfg_interval"]),
                guidance_renorm=facts["cfg_renorm_type"],
                guidance_renorm_min=facts["cfg_renorm_min"],
                num_timesteps=facts["num_timesteps"],
                timestep_shift=facts["timestep_shift"],
            )
            key = facts["result"]
            inputs = self.processor.guidance_contexts([context])
            (latent,) = self.model.generate_latents([settings], noise=[self.tensors[f"{key}.noise"]], **inputs)
            (image,) = self.model.decode_latents(self.model.unpatchify([latent], [settings]))
            latents = max(latents, relative_error(latent, self.tensors[f"{key}.latent"]))
            expected = self.tensors[f"{key}.image"]
            images = max(images, relative_error(image.clamp(-1, 1) if expected.abs().max() <= 1 else image, expected))
        return {"latents": latents, "images": images}

    def autoencoder(self) -> dict[str, float]:
        """One image to the latents of its posterior's mean, and those back to pixels."""
        latents = self.model.encode_images(list(self.tensors["vae.image"]))
        decoded = self.model.decode_latents(list(self.tensors["vae.latent_from_mean"]))
        return {
            "vae_encode": relative_error(torch.stack(latents), self.tensors["vae.latent_from_mean"]),
            "vae_decode": relative_error(torch.stack(decoded), self.tensors["vae.decoded"]),
        }

    def resizing(self) -> dict[str, float]:
        """Output sizes of the image transforms, and the pixels of three images."""
        facts = json.loads((self.folder / "resize.json").read_text())
        tensors = load_file(self.folder / "resize.safetensors")
        error = 0.0
        for row in facts["table"]:
            for name, (longest, shortest, stride) in facts["transforms"].items():
                ours = fit_size(row["width"], row["height"], longest, shortest, stride)
                error = max(error, 0.0 if list(ours) == row[name] else float("inf"))
        for key, pixels in tensors.items():
            if key.endswith(".rgb"):
                for name, (longest, shortest, stride) in PIXEL_TRANSFORMS.items():
                    size = {"longest_edge": longest, "shortest_edge": shortest}
                    processor = BagelImageProcessor(vae_size=size, vae_stride=stride)
                    result = key.replace("rgb", name)
                    ours = processor.prepare(as_in_pillow_13(result, pixels.numpy()), "vae")
                    error = max(error, relative_error(ours, tensors[result]))
        return {"resize": error}


def _tokenizer(vocab_size: int, special: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers: the reference's prompts are ids."""
    vocabulary = {str(index): index for index in range(vocab_size)}
    markers = {"bos": "<|im_start|>", "eos": "<|im_end|>", "soi": "<|vision_start|>", "eoi": "<|vision_end|>"}
    for name, token in markers.items():
        del vocabulary[str(special[name])]
        vocabulary[token] = special[name]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    reference = Reference(parser.parse_args().folder)
    answer, same_answer = reference.answer()
    found = reference.training() | answer | reference.drawing() | reference.resizing() | reference.autoencoder()
    print(json.dumps({name: found[name] for name in TOLERANCES}))
    over = [name for name, tolerance in TOLERANCES.items() if not found[name] <= tolerance]
    if over or not same_answer:
        complaint = [f"{name} is over {TOLERANCES[name]}" for name in over] + ["the greedy answer differs"] * (
            not same_answer
        )
        sys.exit("; ".join(complaint))


if __name__ == "__main__":
    main()
