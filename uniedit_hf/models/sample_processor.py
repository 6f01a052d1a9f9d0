"""`SampleProcessor`: the shared part of all families' processors, see `uniedit_hf.models.family`.

Shapes: B rows of contexts, L tokens of a row, T tokens of an image, h and w pixels of an image in [-1, 1].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from uniedit_hf.images import open_image, pixels_to_pil
from uniedit_hf.models.chats import CallOptions, ChatCalls
from uniedit_hf.recipes import PAPER, Conditioning
from uniedit_hf.segments import ImageSegment, Sample, Segment, TextSegment, View, check_characters


# The token types that all families share; each numbers its image tokens from 2.
PADDING, TEXT = 0, 1
IGNORED = -100  # the label of a token without loss

# The purpose of a sequence of tokens: to train on it, to write text after it, to draw an image from it, or none.
Purpose = Literal["train", "write", "draw", "read"]


class PreparedImage(NamedTuple):
    """A prepared image of a sample.

    Args:
        index: Index of its segment in the sample.
        segment: The segment, with the family's own name of the view.
        data: Pixels (3, h, w), or stored tokens (T,).
    """

    index: int
    segment: ImageSegment
    data: torch.Tensor


class SampleProcessor(ChatCalls):
    """Packs, contexts and guidance branches of samples. Must come before `ProcessorMixin` among the bases of a
    family's processor, which implements the methods that raise `NotImplementedError` here, and sets the attributes.

    A family's `lay_out` decides how one sample becomes tokens. Everything else follows from it: a pack joins the packs
    of its samples, and a batch of contexts is padded on the left.
    """

    view_names: ClassVar[dict[View, str]] = {"understanding": "understanding", "drawing": "drawing"}
    conditioning: ClassVar[Conditioning] = PAPER
    dropped_segments_keep_tokens: ClassVar[bool] = False
    thinking_prompts: dict[str, str] | None = None
    # Whether a text may contain control tokens, such as <|im_end|>. By default a user's text is only text.
    parse_control_tokens: bool = False

    # The token columns that `lay_out` returns, and those that number samples or splits from 0.
    token_columns: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids", "labels")
    numbering_columns: ClassVar[tuple[str, ...]] = ()

    # --- implemented by a family -------------------------------------------------------------------------------------

    @property
    def context_padding(self) -> dict[str, int]:
        """The token columns of a context, with their values at padding."""
        return {"input_ids": 0, "token_type_ids": PADDING}

    def lay_out(self, sample: Sample, images: Sequence[PreparedImage], purpose: Purpose) -> dict[str, np.ndarray]:
        """The tokens of a sample: for each token column int64 (L,), from its images in order."""
        raise NotImplementedError

    def prepare_segment(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        """Prepares an image for the model. `name` is its name in errors. Raises `ImageError`."""
        raise NotImplementedError

    def image_features(self, images: Sequence[PreparedImage]) -> dict[str, Any]:
        """The model's image inputs for any number of samples, in the order of their tokens."""
        raise NotImplementedError

    def training_features(
        self, sample: Sample, images: Sequence[PreparedImage], seed: int, epoch: int, posterior: str
    ) -> dict[str, Any]:
        """The model's inputs that are only used in training, such as noise."""
        return {}

    def num_image_tokens_of(self, image: PreparedImage) -> int:
        """Tokens of an image without markers."""
        raise NotImplementedError

    def segment_lengths(self, sample: Sample) -> list[tuple[int, str]]:
        """For each segment `(extra_tokens, text)`, see `FamilyProcessor`."""
        raise NotImplementedError

    def default_size(self, config) -> tuple[int, int]:
        """(width, height) of a drawing if no size is given."""
        raise NotImplementedError

    def prepare_target(self, image: Image.Image) -> torch.Tensor:
        """An image as a training target: pixels (3, h, w)."""
        raise NotImplementedError

    # --- may be overridden by a family
    # ---------------------------------------------------------------------------------

    def guidance_branches(self, sample: Sample, thought: str | None) -> tuple[Sample, Sample, Sample]:
        """The condition to draw from, ending with the model's reasoning; the same without its last text and the
        reasoning; and only its texts.
        """
        segments = list(sample.segments)
        texts = [index for index, segment in enumerate(segments) if isinstance(segment, TextSegment)]
        without_last_text = [segment for index, segment in enumerate(segments) if index not in texts[-1:]]
        thoughts = [TextSegment(thought)] if thought else []
        branches = ([*segments, *thoughts], without_last_text, [segments[index] for index in texts])
        return tuple(sample.with_segments(branch) for branch in branches)

    def open_source(self, image: Any, name: str = "image") -> Image.Image:
        """Opens an image to edit or to ask about. Raises `ImageError` if it cannot be used."""
        return open_image(image, name=name)

    def output_size(self, source: Image.Image) -> tuple[int, int]:
        """(width, height) of an edit of what `open_source` returned: its own."""
        return source.size

    def token_ids(self, text: str | Sequence[int]) -> list[int]:
        """Ids of a text without markers; a list of ids is returned unchanged. Raises as `check_characters`."""
        if isinstance(text, str):
            check_characters(text, "text")
            return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [int(token) for token in text]

    @cached_property
    def _control_tokens(self) -> re.Pattern | None:
        added = self.tokenizer.added_tokens_decoder.values()
        # Janus-Pro's tokenizer does not mark its turn and image tokens as special.
        names = {str(token) for token in added if token.special or re.fullmatch(r"<(\|.+\||.*image.*)>", str(token))}
        return re.compile(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})") if names else None

    def _literal(self, text: str | Sequence[int]) -> str | list[int]:
        """The text, or its ids if it contains the names of control tokens, which are then ordinary text."""
        names = None if self.parse_control_tokens or not isinstance(text, str) else self._control_tokens
        if names is None or not names.search(text):
            return text
        ids = []
        for number, part in enumerate(names.split(text)):
            halves = (part[:1], part[1:]) if number % 2 else (part,)  # neither half is the name of a control token
            ids += [index for half in halves for index in self.token_ids(half)]
        return ids

    def in_own_terms(self, sample: Sample) -> Sample:
        """The sample with the family's own names of all views, and with ids for texts that contain names of control
        tokens.

        Raises:
            ValueError: As `with_own_views`.
        """
        sample = self.with_own_views(sample)
        texts = {
            number: self._literal(segment.text)
            for number, segment in enumerate(sample.segments)
            if isinstance(segment, TextSegment)
        }
        if all(text is sample.segments[number].text for number, text in texts.items()):
            return sample
        return sample.with_segments(
            [
                replace(segment, text=texts[number]) if number in texts else segment
                for number, segment in enumerate(sample.segments)
            ]
        )

    # --- views and conditioning ---------------------------------------------------------------------------------

    @property
    def source_views(self) -> tuple[View, ...]:
        """The views of an image in this family's reading order."""
        return tuple(self.view_names)

    def to_view(self, name: str) -> View:
        """A view by `name`, which may be the family's own.

        Raises:
            ValueError: If there is no such view.
        """
        for view, own_name in self.view_names.items():
            if name in (view, own_name):
                return view
        raise ValueError(f"There is no view {name!r}: {self._known_views()}.")

    def _known_views(self) -> str:
        views = " and ".join(f"{view!r} ({own_name})" for view, own_name in self.view_names.items())
        return f"{type(self).__name__} has the views {views}"

    def make_conditioning(self, **overrides) -> Conditioning:
        """The `conditioning` of this family with `overrides`; source views are put into the order of the family.

        Raises:
            ValueError: If a view is unknown, or as `Conditioning` does.
        """
        if "source_views" in overrides:
            chosen = {self.to_view(name) for name in overrides["source_views"]}
            overrides["source_views"] = tuple(view for view in self.view_names if view in chosen)
        return self.conditioning.override(**overrides)

    def with_own_views(self, sample: Sample) -> Sample:
        """The sample with the family's own names of all views.

        Raises:
            ValueError: If a view is unknown.
        """
        views = [segment.view for segment in sample.segments if isinstance(segment, ImageSegment)]
        own_names = set(self.view_names.values())
        if own_names.issuperset(views):
            return sample
        for view in views:
            if view not in own_names and view not in self.view_names:
                raise ValueError(
                    f"Sample {sample.id or '(no id)'} shows an image in the view {view!r}, but {self._known_views()}: "
                    "name one of them."
                )
        return sample.with_segments(
            [
                replace(each, view=self.view_names.get(each.view, each.view))
                if isinstance(each, ImageSegment)
                else each
                for each in sample.segments
            ]
        )

    # --- lengths and images -------------------------------------------------------------------------------------

    def num_tokens(self, sample: Sample) -> int:
        """Tokens of a sample in a pack, from sizes and texts alone.

        Raises:
            ValueError: If a view is unknown.
        """
        if not self.dropped_segments_keep_tokens:
            sample = sample.with_segments([segment for segment in sample.segments if not segment.dropped])
        lengths = self.segment_lengths(sample)
        texts = [text for _, text in lengths if text]
        return sum(tokens for tokens, _ in lengths) + sum(self.count_text_tokens(texts))

    def count_text_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without markers; one batch is faster than single texts."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        tokenizer = self.tokenizer.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def with_pixels(self, sample: Sample) -> Sample:
        """The sample with its images opened and prepared, so that an unusable image is found before packing.

        Raises:
            ImageError: If an image cannot be read, or does not have the size given in its row.
        """
        segments = list(sample.segments)
        for index, segment, data in self.prepare_images(sample):
            segments[index] = replace(segment, image=data)
        return sample.with_segments(segments)

    def prepare_images(self, sample: Sample) -> list[PreparedImage]:
        """The images of a sample that are not dropped.

        Raises:
            ImageError: As `with_pixels`.
            ValueError: If a view is unknown.
        """
        name = f"The image of sample {sample.id!r}" if sample.id else "The image"
        return [
            PreparedImage(index, segment, self.prepare_segment(segment, name, sample.id))
            for index, segment in enumerate(self.with_own_views(sample).segments)
            if isinstance(segment, ImageSegment) and not segment.dropped
        ]

    def drawn_tokens(self, width: int, height: int) -> int:
        """See `FamilyProcessor`."""
        return self.num_tokens(Sample([ImageSegment(None, "drawing", size=(width, height))]))

    def to_pil(self, pixels: torch.Tensor) -> Image.Image:
        """Pixels (3, h, w) in [-1, 1] as an image.

        Raises:
            ValueError: If some are NaN.
        """
        return pixels_to_pil(pixels)

    # --- packs --------------------------------------------------------------------------------------------------

    def pack(
        self, samples: Sequence[Sample], seed: int = 0, epoch: int | Sequence[int] = 0, posterior: str = "mean"
    ) -> BatchFeature:
        """Samples end to end in one sequence, with the random draws of each: the inputs of the training forward.

        Args:
            samples: Samples whose dropout has been drawn (see `uniedit_hf.recipes.draw_dropout`).
            seed: Seeds every random draw, together with `epoch` and the sample's id.
            epoch: See `seed`; one for all samples, or one for each.
            posterior: `"mean"` or `"sample"` of an autoencoder's posterior, for families that have one.

        Returns:
            `input_ids`, `token_type_ids`, `labels` and the family's other token columns: (1, L); images and noise for
            the model's `forward`; `num_text_targets` and `num_image_targets`, the numbers of tokens with a loss.

        Raises:
            ValueError: If there is no sample, or a view is unknown.
            ImageError: If an image cannot be used.
        """
        samples = list(samples)
        if not samples:
            raise ValueError("A pack needs at least one sample, but the list of samples is empty.")
        epochs = [epoch] * len(samples) if isinstance(epoch, int) else epoch
        packs = [self._pack_one(sample, seed, each, posterior) for sample, each in zip(samples, epochs)]
        return BatchFeature(self._end_to_end(packs))

    def _pack_one(self, sample: Sample, seed: int, epoch: int, posterior: str) -> dict[str, Any]:
        images = self.prepare_images(sample)
        columns = self.lay_out(self.in_own_terms(sample), images, "train")
        features = {name: torch.from_numpy(column)[None] for name, column in columns.items()}
        features |= self.image_features(images)
        features |= self.training_features(sample, images, seed, epoch, posterior)
        features["num_text_targets"] = int((features["labels"] != IGNORED).sum())
        features["num_image_targets"] = sum(self.num_image_tokens_of(each) for each in images if each.segment.loss)
        return features

    def merge(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Joins several packs in one sequence; samples and splits are renumbered consecutively."""
        return self._end_to_end(packs)

    def _end_to_end(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for name in dict.fromkeys(name for pack in packs for name in pack):
            values = [pack[name] for pack in packs if name in pack]
            if name.startswith("num_"):
                merged[name] = sum(values)
            elif isinstance(values[0], list):
                merged[name] = [item for value in values for item in value]
            elif name in self.numbering_columns:
                # a sample without tokens keeps its number
                counts = [int(value.max()) + 1 if value.numel() else 1 for value in values]
                starts = np.cumsum([0, *counts]).tolist()
                merged[name] = torch.cat([value + start for value, start in zip(values, starts)], dim=1)
            else:
                merged[name] = torch.cat(values, dim=1 if name in self.token_columns else 0)
        return merged

    # --- contexts -----------------------------------------------------------------------------------------------

    def __call__(self, samples: Sample | Sequence[Sample]) -> BatchFeature:
        """Contexts to write text after: the inputs of `generate()`."""
        return self.contexts([samples] if isinstance(samples, Sample) else list(samples), "write")

    def contexts(
        self, samples: Sequence[Sample], purpose: Purpose, options: CallOptions | None = None
    ) -> BatchFeature:
        """Samples as padded rows: the context columns (B, L), `attention_mask` (B, L) and the images.

        Args:
            samples: One sample per row.
            purpose: The purpose of the contexts.
            options: How rows are padded, and whether to return `assistant_masks`; by default to the longest row, on
                the left.

        Raises:
            ValueError: If there is no sample, a view is unknown, or as `CallOptions.row_length`.
            ImageError: If an image cannot be used.
        """
        if not samples:
            raise ValueError("There is nothing to do: the list of requests is empty.")
        options = options or CallOptions()
        images = [self.prepare_images(sample) for sample in samples]
        rows = [self.lay_out(self.in_own_terms(sample), each, purpose) for sample, each in zip(samples, images)]
        padding = self.context_padding
        if options.continue_final_message:
            rows = [_unended(row, sample) for row, sample in zip(rows, samples)]
        if options.return_assistant_tokens_mask:
            padding = padding | {"assistant_masks": 0}
            rows = [row | {"assistant_masks": _said(row["labels"])} for row in rows]
        length = options.row_length([len(row["input_ids"]) for row in rows])
        features: dict[str, Any] = {}
        for name, value in padding.items():
            columns = [_padded(row[name], length, value, options.padding_side) for row in rows]
            features[name] = torch.from_numpy(np.stack(columns))
        features["attention_mask"] = (features["token_type_ids"] != PADDING).long()
        return BatchFeature(features | self.image_features([image for each in images for image in each]))

    def guidance_contexts(
        self, samples: Sequence[Sample], thoughts: Sequence[str | None] | None = None
    ) -> BatchFeature:
        """Contexts to draw images from, with those that guidance compares them to: the inputs of `generate_images()`.

        Each sample gives three contexts, see `guidance_branches`. Equal contexts are stored once; `branches` (samples,
        3) has the rows of each sample's three contexts.

        Args:
            samples: The conditions.
            thoughts: The reasoning for each sample.
        """
        rows: list[Sample] = []
        row_of: dict[tuple, int] = {}
        branches = []
        for sample, thought in zip(samples, thoughts or [None] * len(samples)):
            places = []
            for branch in self.guidance_branches(sample, thought):
                key = tuple(map(_identity, branch.segments))
                if key not in row_of:
                    row_of[key] = len(rows)
                    rows.append(branch)
                places.append(row_of[key])
            branches.append(places)
        features = self.contexts(rows, "draw")
        features["branches"] = torch.tensor(branches)
        return features


def _padded(column: np.ndarray, length: int, value: int, side: str) -> np.ndarray:
    missing = length - len(column)
    return np.pad(column, (missing, 0) if side == "left" else (0, missing), constant_values=value)


def _unended(row: dict[str, np.ndarray], sample: Sample) -> dict[str, np.ndarray]:
    """The row of a sample that ends with a text of the assistant, without the end marker."""
    last = sample.segments[-1]
    if not (isinstance(last, TextSegment) and last.loss):
        raise ValueError("continue_final_message continues what the assistant said: end the chat with its message.")
    return {name: column[:-1] for name, column in row.items()}


def _said(labels: np.ndarray) -> np.ndarray:
    """1 at the tokens of the assistant, from the labels, which stand one earlier."""
    return np.concatenate([[0], labels[:-1] != IGNORED]).astype(np.int64)


def _identity(segment: Segment) -> tuple:
    """A key by which two segments are equal. Images are compared by identity: branches of a request share them."""
    if isinstance(segment, TextSegment):
        text = segment.text if isinstance(segment.text, str) else tuple(segment.text)
        return text, segment.dropped, segment.loss
    return None if segment.dropped else id(segment.image), segment.view
