"""Samples to what Janus-Pro takes: packs to train on, contexts to write or draw from.

Every picture has one geometry, whichever view sees it and whether it is read or drawn: its longest side becomes the
model's (384 pixels in the released one) and grey fills the square, as transformers' image processor does it.

Shapes: B rows, L tokens a row, N SigLIP views, M VQ views, S pixels a side, T tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.models.janus.processing_janus import JanusProcessor as TransformersJanusProcessor

from uniedit_hf.images import ImageError, open_image
from uniedit_hf.models.sample_images import SampleImages
from uniedit_hf.recipes import Conditioning
from uniedit_hf.segments import ImageSegment, Sample, TextSegment

from .layout import PADDING, Markers, TokenRow, lay_out, piece_length, pieces


ROW_NAMES = ("input_ids", "token_type_ids", "position_ids", "labels")
NOT_ENCODED = -1  # where a VQ view comes as pixels and not as stored tokens


class JanusProcessor(SampleImages, TransformersJanusProcessor):
    """transformers' `JanusProcessor`, called with text and images as ever, that also takes samples.

    Raises:
        ValueError: When it is given samples, if its image processor does not normalise to [-1, 1].
    """

    source_views = ("siglip", "vq")
    reading_view = "siglip"
    # How Janus-Pro is tuned unless asked otherwise, see docs/janus.md; the one place where this is decided.
    conditioning = Conditioning(source_views=("siglip", "vq"), vae_dropout=0.5, full_dropout=0.05)
    dropped_segments_keep_tokens = True

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return self.image_processor.size["height"]

    @property
    def markers(self) -> Markers:
        """Ids of all tokens that are not words."""
        tokenizer = self.tokenizer
        names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
        names += (self.image_start_token, self.image_end_token, self.image_token)
        ids = [tokenizer.convert_tokens_to_ids(name) for name in names if name is not None]
        if len(ids) < len(names) or None in ids:
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path or 'this processor'} lacks one of the tokens for "
                f"beginning, end, padding or images (found: {names}): use the checkpoint's own tokenizer."
            )
        return Markers(*ids, self.num_image_tokens)

    # --- sizes, without pixels ----------------------------------------------------------------------------------

    def num_tokens(self, sample: Sample) -> int:
        """How many tokens a sample takes in a pack; dropped segments keep theirs."""
        plans = self.segment_plans(sample)
        return sum(tokens for tokens, _ in plans) + sum(self.count_words([words for _, words in plans if words]))

    def segment_plans(self, sample: Sample) -> list[tuple[int, str]]:
        """Per segment the tokens it takes beside its words, and its words, which `count_words` counts together with
        those of other samples.

        Raises:
            ImageError: If an image is too narrow to be seen.
        """
        plans, marks = [], self.markers
        for piece in pieces(sample, self._begins_with_prompt(sample)):
            if isinstance(piece.segment, ImageSegment):
                self._check(piece.segment, sample.id)
            if piece.whole_text is None:
                plans.append((piece.begins + piece_length(piece, self._tokenize, marks), ""))
            else:
                plans.append((piece.begins + piece.is_answer, piece.whole_text))
        return plans

    def count_words(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of many texts takes without markers."""
        return [len(ids) for ids in texts and self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def output_size(self, source) -> tuple[int, int]:
        """(width, height) of an edit: what the source takes of the square."""
        return self._kept(source.size, "The image")

    def default_size(self, config) -> tuple[int, int]:
        """(width, height) of a drawing: the whole square."""
        return (config.vision_config.image_size,) * 2

    def _kept(self, size: tuple[int, int], name: str) -> tuple[int, int]:
        """What a picture takes of the square, without being squeezed."""
        scale = self.side / max(size)
        smallest = self.image_processor.min_size
        if round(min(size) * scale) < smallest:
            raise ImageError(
                f"{name} is {size[0]} x {size[1]} pixels, of which Janus-Pro would see {round(size[0] * scale)} x "
                f"{round(size[1] * scale)}, and it needs {smallest} a side: crop it, or leave it out."
            )
        return round(size[0] * scale), round(size[1] * scale)

    def open_source(self, image: Any, name: str = "image"):
        """Opens an image that is edited or asked about.

        Raises:
            ImageError: If it cannot be read or is too narrow.
        """
        picture = open_image(image, name=name)
        self._kept(picture.size, name)
        return picture

    def prepare(self, picture, name: str = "image") -> torch.Tensor:
        """A picture as pixels (3, S, S) in [-1, 1].

        Raises:
            ImageError: If it is too narrow.
            ValueError: If the image processor normalises otherwise.
        """
        settings = self.image_processor
        if [*settings.image_mean, *settings.image_std] != [0.5] * 6:
            raise ValueError(
                f"The image processor has image_mean={list(settings.image_mean)} and "
                f"image_std={list(settings.image_std)}, but Janus-Pro sees pixels in [-1, 1]: set both to "
                "[0.5, 0.5, 0.5], as the released preprocessor_config.json does."
            )
        self._kept(picture.size, name)
        return self.image_processor(images=[picture], return_tensors="pt")["pixel_values"][0].float()

    def drawn(self, picture) -> torch.Tensor:
        """A picture as pixels (3, S, S) in [-1, 1] of the view that the model draws."""
        return self.prepare(picture)

    def to_pil(self, pixels: torch.Tensor):
        """Pixels (3, h, w) in [-1, 1] as a PIL image."""
        from PIL import Image

        values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())

    # --- words and pixels ---------------------------------------------------------------------------------------

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _begins_with_prompt(self, sample: Sample) -> bool:
        """Whether a sample is a conversation in words, which begins with the system prompt."""
        last = sample.segments[-1] if sample.segments else None
        return self.use_default_system_prompt and isinstance(last, TextSegment) and last.loss

    def _check(self, segment: ImageSegment, sample_id: str) -> None:
        if segment.view not in self.source_views:
            raise ValueError(
                f"Sample {sample_id or '(no id)'} shows an image in the view {segment.view!r}, but Janus-Pro has the "
                "views 'siglip' (to read) and 'vq' (to read and draw): name one of them."
            )
        if segment.size is not None:
            self._kept(segment.size, f"The image of sample {sample_id!r}" if sample_id else "The image")

    def _prepare(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        self._check(segment, sample_id)
        if segment.tokens is not None:
            return self._stored(segment, name)
        if isinstance(segment.image, torch.Tensor):
            if segment.image.shape != (3, self.side, self.side):
                raise ImageError(
                    f"{name} has the shape {tuple(segment.image.shape)}, but the model takes (3, {self.side}, "
                    f"{self.side}): give a picture, which is fitted without squeezing it."
                )
            return segment.image
        picture = open_image(segment.image, name=name)
        if segment.size is not None and tuple(segment.size) != picture.size:
            raise ImageError(
                f"{name} is {picture.width} x {picture.height} pixels, but its row states "
                f"{segment.size[0]} x {segment.size[1]}: correct the size columns."
            )
        return self.prepare(picture, name)

    def _stored(self, segment: ImageSegment, name: str) -> torch.Tensor:
        ids = torch.as_tensor(segment.tokens.ids, dtype=torch.long)
        if len(ids) != self.num_image_tokens:
            raise ImageError(
                f"{name} has {len(ids)} stored tokens, but this model's images have {self.num_image_tokens}: store "
                "those of this model, or remove the columns."
            )
        return ids

    def _images(self, samples: list[Sample], prepared: list[list[torch.Tensor | None]]) -> dict[str, Any]:
        """The views as the model takes them, in the order of their tokens."""
        views = [
            (segment, image)
            for sample, images in zip(samples, prepared)
            for segment, image in zip(sample.segments, images)
            if image is not None
        ]
        siglip = [image for segment, image in views if segment.view == "siglip"]
        vq = [(segment, image) for segment, image in views if segment.view == "vq"]
        features: dict[str, Any] = {}
        if siglip:
            features["siglip_images"] = torch.stack(siglip)
        if vq:
            unknown = torch.full((self.num_image_tokens,), NOT_ENCODED)
            features["vq_tokens"] = torch.stack([unknown if segment.tokens is None else x for segment, x in vq])
            features["vq_loss"] = torch.tensor([segment.loss for segment, _ in vq])
            features["vq_made_by"] = sorted(
                {segment.tokens.made_by for segment, _ in vq if segment.tokens is not None}
            )
            pixels = [image for segment, image in vq if segment.tokens is None]
            if pixels:
                features["vq_images"] = torch.stack(pixels)
        return features

    # --- packs --------------------------------------------------------------------------------------------------

    def pack(
        self, samples: Sequence[Sample], seed: int = 0, epoch: int | Sequence[int] = 0, posterior: str = "mean"
    ) -> BatchFeature:
        """Samples end to end in one sequence: what the training forward takes.

        Args:
            samples: Whose dropout has been drawn (see `uniedit_hf.recipes.draw_dropout`).
            seed, epoch, posterior: For models that draw noise; Janus-Pro does not.

        Returns:
            `input_ids`, `token_type_ids`, `position_ids` (which begin anew with every sample) and `labels`: (1, L);
            the images as the model's `forward` says; `num_text_targets` and `num_image_targets`, how many tokens
            carry a loss.

        Raises:
            ValueError: If there is no sample, or a view is unknown.
        """
        samples = list(samples)
        if not samples:
            raise ValueError("A pack needs at least one sample, but the list of samples is empty.")
        prepared = [self._pixels(sample) for sample in samples]
        rows = [self._lay_out(sample, self._begins_with_prompt(sample)).arrays() for sample in samples]
        features = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        features["position_ids"] = np.concatenate([np.arange(len(row["input_ids"])) for row in rows])
        features = {name: torch.from_numpy(values)[None] for name, values in features.items()}
        features |= self._images(samples, prepared)
        features["num_text_targets"] = int((features["labels"] != -100).sum())
        drawn = features["vq_loss"].sum() if "vq_loss" in features else 0
        features["num_image_targets"] = int(drawn) * self.num_image_tokens
        return BatchFeature(features)

    def _lay_out(self, sample: Sample, system_prompt: bool) -> TokenRow:
        return lay_out(sample, self._tokenize, self.markers, system_prompt)

    @staticmethod
    def merge(packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several packs end to end in one sequence."""
        merged: dict[str, Any] = {}
        for name in dict.fromkeys(name for pack in packs for name in pack):
            values = [pack[name] for pack in packs if name in pack]
            if name.startswith("num_"):
                merged[name] = sum(values)
            elif isinstance(values[0], list):
                merged[name] = sorted({item for value in values for item in value})
            else:
                merged[name] = torch.cat(values, dim=1 if name in ROW_NAMES else 0)
        return merged

    # --- contexts -----------------------------------------------------------------------------------------------

    def __call__(self, samples=None, images=None, text=None, **kwargs) -> BatchFeature:
        """Contexts to write text from, padded on the left, if given samples; else as transformers' processor.

        Args:
            samples: One `Sample` or a list of them; anything else is taken as `text`.
            images: See transformers' `JanusProcessor`.
            text: Likewise.
            kwargs: Likewise.

        Returns:
            For samples what `generate()` of this package's model takes.

        Raises:
            ValueError: If there is nothing to read.
        """
        found = [samples] if isinstance(samples, Sample) else samples
        if isinstance(found, (list, tuple)) and all(isinstance(each, Sample) for each in found):
            conversation = self.use_default_system_prompt
            return self._contexts(list(found), [conversation] * len(found), draws=False)
        return super().__call__(samples if text is None else text, images, **kwargs)

    def guidance_contexts(self, samples: Sequence[Sample]) -> BatchFeature:
        """Contexts to draw images from, with those that guidance compares them to: what `generate_images()` takes.

        Each sample gives three contexts: itself, itself with its texts dropped, and with everything dropped. Contexts
        that are equal are kept once; `branches` (samples, 3) says which row each sample's three are.
        """
        rows: list[Sample] = []
        index: dict[tuple, int] = {}
        branches = []
        for sample in samples:
            places = []
            for dropped in (_nothing, _texts, _everything):
                branch = sample.with_segments([replace(x, dropped=x.dropped or dropped(x)) for x in sample.segments])
                key = tuple(_identity(segment) for segment in branch.segments)
                if key not in index:
                    index[key] = len(rows)
                    rows.append(branch)
                places.append(index[key])
            branches.append(places)
        features = self._contexts(rows, [False] * len(rows), draws=True)
        features["branches"] = torch.tensor(branches)
        return features

    def _contexts(self, samples: list[Sample], system_prompt: list[bool], draws: bool) -> BatchFeature:
        if not samples:
            raise ValueError("There is nothing to do: the list of requests is empty.")
        prepared, marks = [self._pixels(sample) for sample in samples], self.markers
        rows = []
        for sample, prompt in zip(samples, system_prompt):
            row = self._lay_out(sample, prompt)
            if not sample.segments:
                row.extend([marks.bos])
            if draws:
                row.extend([marks.begin])
            rows.append(row.arrays())
        length = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": marks.pad, "token_type_ids": PADDING}
        features: dict[str, Any] = {
            name: torch.from_numpy(
                np.stack([np.pad(row[name], (length - len(row[name]), 0), constant_values=value) for row in rows])
            )
            for name, value in padding.items()
        }
        features["attention_mask"] = (features["token_type_ids"] != PADDING).long()
        images = self._images(samples, prepared)
        images.pop("vq_loss", None)
        return BatchFeature(features | images)

    @property
    def model_input_names(self) -> list[str]:
        """What a training forward reads, and what transformers' own does."""
        ours = [*ROW_NAMES, "attention_mask", "siglip_images", "vq_images", "vq_tokens", "vq_loss", "vq_made_by"]
        return list(dict.fromkeys([*super().model_input_names, *ours]))


def _nothing(segment) -> bool:
    return False


def _texts(segment) -> bool:
    return isinstance(segment, TextSegment)


def _everything(segment) -> bool:
    return True


def _identity(segment: TextSegment | ImageSegment) -> tuple:
    """What makes two segments the same context. Images by identity: the branches of one request share them."""
    if isinstance(segment, TextSegment):
        text = segment.text if isinstance(segment.text, str) else tuple(segment.text)
        return (text, segment.dropped, segment.loss)
    return (None if segment.dropped else id(segment.image), segment.view)
