"""Converts samples to Janus-Pro's inputs: packs to train on, contexts to write or draw from.

Every image has the same geometry in both views, read or drawn: its longest side is scaled to the model's size (384
pixels in the released one) and padded with gray to a square, as in transformers' image processor.

Shapes: L tokens of a sample, N SigLIP views, M VQ views, S pixels a side, T tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.models.janus.processing_janus import (
    JanusProcessor as TransformersJanusProcessor,
    JanusProcessorKwargs,
)

from uniedit_hf.images import ImageError, open_image
from uniedit_hf.models.sample_processor import PreparedImage, Purpose, SampleProcessor
from uniedit_hf.recipes import Conditioning
from uniedit_hf.segments import DRAWING, UNDERSTANDING, ImageSegment, Sample, TextSegment

from .layout import CHAT_TEMPLATE, PADDING, Markers, lay_out, piece_length, pieces


NOT_ENCODED = -1  # marks a VQ view given as pixels instead of stored tokens


class JanusProcessor(SampleProcessor, TransformersJanusProcessor):
    """transformers' `JanusProcessor`, called with text and images as usual, that also takes samples.

    Raises:
        ValueError: If it is called with samples and its image processor does not normalize to [-1, 1].
    """

    view_names = {"understanding": "siglip", "drawing": "vq"}
    # The default conditioning of Janus-Pro, see docs/janus.md; this is the only place where it is set.
    conditioning = Conditioning(source_views=(UNDERSTANDING, DRAWING), drawing_dropout=0.5, full_dropout=0.05)
    dropped_segments_keep_tokens = True
    token_columns = ("input_ids", "token_type_ids", "position_ids", "labels")
    valid_processor_kwargs = JanusProcessorKwargs  # of text and images
    tokenizes_templates = True

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        use_default_system_prompt: bool = False,
        num_image_tokens: int = 576,
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            chat_template=chat_template or CHAT_TEMPLATE,
            use_default_system_prompt=use_default_system_prompt,
            num_image_tokens=num_image_tokens,
            **kwargs,
        )
        self.tokenizer.padding_side = "left"  # pipelines pad by it, and the model continues its contexts

    @property
    def side(self) -> int:
        """Side of an image in pixels."""
        return self.image_processor.size["height"]

    @property
    def markers(self) -> Markers:
        """Ids of all special tokens."""
        tokenizer = self.tokenizer
        names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
        names += (self.image_start_token, self.image_end_token, self.image_token)
        ids = [tokenizer.convert_tokens_to_ids(name) for name in names if name is not None]
        if len(ids) < len(names) or None in ids:
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path or 'this processor'} does not have all tokens for "
                f"beginning, end, padding and images (found: {names}): use the checkpoint's own tokenizer."
            )
        return Markers(*ids, self.num_image_tokens)

    # --- sizes, without pixels ----------------------------------------------------------------------------------

    def segment_lengths(self, sample: Sample) -> list[tuple[int, str]]:
        """For each segment `(extra_tokens, text)`, the text including the words of the conversation around it, see
        `FamilyProcessor`.

        Raises:
            ImageError: If an image is too narrow.
            ValueError: If a view is unknown.
        """
        lengths, marks = [], self.markers
        sample = self.in_own_terms(sample)
        for piece in pieces(sample, self._begins_with_prompt(sample)):
            if isinstance(piece.segment, ImageSegment):
                self._check_size(piece.segment, sample.id)
            if piece.whole_text is None:
                lengths.append((piece.begins + piece_length(piece, self.token_ids, marks), ""))
            else:
                lengths.append((piece.begins + piece.is_answer, piece.whole_text))
        return lengths

    def output_size(self, source) -> tuple[int, int]:
        """(width, height) of an edit: the part of the square that the source fills."""
        return self._fitted_size(source.size, "The image")

    def default_size(self, config) -> tuple[int, int]:
        """(width, height) of a drawing: the whole square."""
        return (config.vision_config.image_size,) * 2

    def _fitted_size(self, size: tuple[int, int], name: str) -> tuple[int, int]:
        """(width, height) of an image within the square, with its aspect ratio kept."""
        scale = self.side / max(size)
        smallest = self.image_processor.min_size
        if round(min(size) * scale) < smallest:
            raise ImageError(
                f"{name} is {size[0]} x {size[1]} pixels, which Janus-Pro would scale to {round(size[0] * scale)} x "
                f"{round(size[1] * scale)}, but it needs {smallest} per side: crop it, or leave it out."
            )
        return round(size[0] * scale), round(size[1] * scale)

    def open_source(self, image: Any, name: str = "image"):
        """Opens an image to edit or to ask about.

        Raises:
            ImageError: If it cannot be read or is too narrow.
        """
        opened = open_image(image, name=name)
        self._fitted_size(opened.size, name)
        return opened

    def prepare(self, image, name: str = "image") -> torch.Tensor:
        """An image as pixels (3, S, S) in [-1, 1].

        Raises:
            ImageError: If it is too narrow.
            ValueError: If the image processor normalizes differently.
        """
        settings = self.image_processor
        if [*settings.image_mean, *settings.image_std] != [0.5] * 6:
            raise ValueError(
                f"The image processor has image_mean={list(settings.image_mean)} and "
                f"image_std={list(settings.image_std)}, but Janus-Pro sees pixels in [-1, 1]: set both to "
                "[0.5, 0.5, 0.5], as the released preprocessor_config.json does."
            )
        self._fitted_size(image.size, name)
        return self.image_processor(images=[image], return_tensors="pt")["pixel_values"][0].float()

    def prepare_target(self, image) -> torch.Tensor:
        """An image as a training target: pixels (3, S, S) in [-1, 1]."""
        return self.prepare(image)

    # --- words and pixels ---------------------------------------------------------------------------------------

    def _begins_with_prompt(self, sample: Sample) -> bool:
        """Whether a sample is a text conversation, which begins with the system prompt."""
        last = sample.segments[-1] if sample.segments else None
        return self.use_default_system_prompt and isinstance(last, TextSegment) and last.loss

    def _check_size(self, segment: ImageSegment, sample_id: str) -> None:
        if segment.size is not None:
            self._fitted_size(segment.size, f"The image of sample {sample_id!r}" if sample_id else "The image")

    def prepare_segment(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        """Pixels (3, S, S) of a view, or its stored tokens (T,). A tensor of pixels is returned unchanged.

        Raises:
            ImageError: If the image cannot be read, is too narrow, or does not have the size given in its row.
        """
        self._check_size(segment, sample_id)
        if segment.tokens is not None:
            return self._stored_tokens(segment, name)
        if isinstance(segment.image, torch.Tensor):
            if segment.image.shape != (3, self.side, self.side):
                raise ImageError(
                    f"{name} has the shape {tuple(segment.image.shape)}, but the model takes (3, {self.side}, "
                    f"{self.side}): pass an image, which is resized with its aspect ratio kept."
                )
            return segment.image
        image = open_image(segment.image, name=name)
        if segment.size is not None and tuple(segment.size) != image.size:
            raise ImageError(
                f"{name} is {image.width} x {image.height} pixels, but its row gives {segment.size[0]} x "
                f"{segment.size[1]}: correct the size columns."
            )
        return self.prepare(image, name)

    def _stored_tokens(self, segment: ImageSegment, name: str) -> torch.Tensor:
        ids = torch.as_tensor(segment.tokens.ids, dtype=torch.long)
        if len(ids) != self.num_image_tokens:
            raise ImageError(
                f"{name} has {len(ids)} stored tokens, but this model's images have {self.num_image_tokens}: store "
                "those of this model, or remove the columns."
            )
        return ids

    def image_features(self, images: Sequence[PreparedImage]) -> dict[str, Any]:
        """The SigLIP views as pixels and the VQ views as pixels or stored tokens, in the order of their tokens."""
        siglip = [each.data for each in images if each.segment.view == "siglip"]
        vq = [each for each in images if each.segment.view == "vq"]
        features: dict[str, Any] = {}
        if siglip:
            features["siglip_images"] = torch.stack(siglip)
        if vq:
            unknown = torch.full((self.num_image_tokens,), NOT_ENCODED)
            features["vq_tokens"] = torch.stack([unknown if x.segment.tokens is None else x.data for x in vq])
            features["vq_made_by"] = [x.segment.tokens.made_by for x in vq if x.segment.tokens is not None]
            pixels = [x.data for x in vq if x.segment.tokens is None]
            if pixels:
                features["vq_images"] = torch.stack(pixels)
        return features

    def num_image_tokens_of(self, image: PreparedImage) -> int:
        """Number of tokens of an image without markers, the same for every image."""
        return self.num_image_tokens

    # --- training -----------------------------------------------------------------------------------------------

    def training_features(
        self, sample: Sample, images: Sequence[PreparedImage], seed: int, epoch: int, posterior: str
    ) -> dict[str, Any]:
        """Which VQ views are drawn; involves no randomness."""
        losses = [image.segment.loss for image in images if image.segment.view == "vq"]
        return {"vq_loss": torch.tensor(losses)} if losses else {}

    def lay_out(self, sample: Sample, images: Sequence[PreparedImage], purpose: Purpose) -> dict[str, np.ndarray]:
        """Tokens of a sample. Positions restart with every sample, which separates the samples of a pack."""
        marks = self.markers
        if purpose in ("train", "read"):
            system_prompt = self._begins_with_prompt(sample)
        else:
            system_prompt = purpose == "write" and self.use_default_system_prompt
        row = lay_out(sample, self.token_ids, marks, system_prompt, is_answered=purpose != "read")
        if purpose != "train" and not sample.segments:
            row.extend([marks.bos])
        if purpose == "draw":
            row.extend([marks.begin])
        columns = row.arrays()
        return columns | {"position_ids": np.arange(len(columns["input_ids"]))}

    # --- contexts -----------------------------------------------------------------------------------------------

    def __call__(self, samples=None, images=None, text=None, **kwargs) -> BatchFeature:
        """Contexts to write text from, padded on the left, if given samples; otherwise like transformers' processor.

        Args:
            samples: One `Sample` or a list of them; anything else is taken as `text`.
            images: See transformers' `JanusProcessor`.
            text: Likewise.
            kwargs: Likewise.

        Returns:
            For samples, the inputs of `generate()` of this package's model.

        Raises:
            ValueError: If there is nothing to read.
        """
        found = [samples] if isinstance(samples, Sample) else samples
        if isinstance(found, (list, tuple)) and all(isinstance(each, Sample) for each in found):
            if images is not None or text is not None:
                raise ValueError("Samples contain their own images and texts: give samples, or images and text.")
            return self.contexts_as(found, kwargs) if kwargs else self.contexts(found, "write")
        return TransformersJanusProcessor.__call__(self, samples if text is None else text, images, **kwargs)

    def chat_features(self, features: BatchFeature) -> BatchFeature:
        """As transformers' processor returns a chat: all images of chats are `pixel_values`."""
        features.pop("token_type_ids")
        if "siglip_images" in features:
            features["pixel_values"] = features.pop("siglip_images")
        return features

    @property
    def context_padding(self) -> dict[str, int]:
        """The token columns of a context, with their values at padding."""
        return {"input_ids": self.markers.pad, "token_type_ids": PADDING}

    def guidance_branches(self, sample: Sample, thought: str | None) -> tuple[Sample, Sample, Sample]:
        """The sample itself, with its texts dropped, and with everything dropped.

        Raises:
            ValueError: If there is reasoning, from which Janus-Pro cannot draw.
        """
        if thought is not None:
            raise ValueError("Janus-Pro was not trained to draw from reasoning: leave thoughts out.")
        without_text = [replace(x, dropped=x.dropped or isinstance(x, TextSegment)) for x in sample.segments]
        empty = [replace(segment, dropped=True) for segment in sample.segments]
        return sample, sample.with_segments(without_text), sample.with_segments(empty)
