"""Samples to what BAGEL takes: packs to train on, contexts to write or draw from.

Both come from one layout of segments as tokens, after the reference: every text stands between begin and end markers
and every image between image markers; all tokens of an image share one rotary position.

Shapes: B rows, L tokens a row, V patches of all ViT views, P tokens and C channels of a VAE view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from uniedit_hf.attention import CAUSAL, FULL, NOISE, PADDING as NO_SAMPLE
from uniedit_hf.images import ImageError, image_size, open_image
from uniedit_hf.models.sample_images import SampleImages
from uniedit_hf.randomness import torch_generator
from uniedit_hf.recipes import PAPER
from uniedit_hf.segments import ImageSegment, Sample, TextSegment

from .checkpoint_bagel import CheckpointFolder
from .configuration_bagel import LATENT, PADDING, TEXT, VIT, BagelConfig
from .image_processing_bagel import BagelImageProcessor
from .routing_bagel import PackRouting, route_pack


# name of a token's attribute -> its value at padding
ATTRIBUTES = {
    "input_ids": 0,
    "token_type_ids": PADDING,
    "position_ids": 0,
    "split_ids": NO_SAMPLE,
    "split_kinds": CAUSAL,
    "labels": -100,
}


class TokenRow:
    """The tokens of one sample, attribute by attribute, as segments are appended."""

    def __init__(self):
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in ATTRIBUTES}
        self.position = 0
        self.num_splits = 0

    def append(self, ids, types, kind: int, positions, labels=None) -> None:
        """Adds one split of tokens."""
        length = len(ids)
        values = {
            "input_ids": ids,
            "token_type_ids": types,
            "position_ids": positions,
            "split_ids": np.full(length, self.num_splits),
            "split_kinds": np.full(length, kind),
            "labels": np.full(length, -100) if labels is None else labels,
        }
        for name, value in values.items():
            self.columns[name].append(np.asarray(value, dtype=np.int64))
        self.num_splits += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Each attribute as one array."""
        empty = np.empty(0, dtype=np.int64)
        return {name: np.concatenate([empty, *parts]) for name, parts in self.columns.items()}


class BagelProcessor(SampleImages, ProcessorMixin):
    """A tokenizer and an image processor that together turn samples into BAGEL's inputs.

    Args:
        image_processor: Sizes and pixels of both views.
        tokenizer: Must know `<|im_start|>`, `<|im_end|>`, `<|vision_start|>` and `<|vision_end|>`.

    Raises:
        ValueError: If the tokenizer lacks one of the four markers.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.bos_id, self.eos_id, self.start_id, self.end_id = (
            _marker(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        )

    # What a source is shown through while editing, and an image while answering.
    source_views = ("vae", "vit")
    reading_view = "vit"
    conditioning = PAPER  # how it is tuned unless asked otherwise
    dropped_segments_keep_tokens = False
    # What asks for thoughts, in our words; a model that was trained with other words gets them by setting this.
    thinking_prompts = {
        "answer": (
            "Reason step by step before you answer. Write the reasoning between <think> and </think>, and the answer "
            "after it."
        ),
        "draw": (
            "Plan the picture before you draw it. Write the plan between <think> and </think>, and the picture "
            "follows."
        ),
    }

    @classmethod
    def from_checkpoint(cls, name, config: BagelConfig, **hub_options) -> BagelProcessor:
        """The processor saved with a checkpoint, or for an official folder one of its tokenizer and the shapes of
        its configuration.

        Raises:
            OSError: If there is no tokenizer.
        """
        folder = CheckpointFolder(name, hub_options)
        if folder.has("processor_config.json"):
            return cls.from_pretrained(name, **hub_options)
        if not folder.has("tokenizer.json") and not folder.has("vocab.json"):
            raise OSError(
                f"{name} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt, beside the "
                "weights. Copy them from the base model's folder."
            )
        vit_stride, vae_stride = config.vision_config.patch_size, 8 * config.latent_patch_size
        # the released sizes, as far as the model has positions for them
        vit_edge = min(980, config.vision_config.image_size) // vit_stride * vit_stride
        vae_edge = min(1024, config.max_latent_size * vae_stride) // vae_stride * vae_stride
        image_processor = BagelImageProcessor(
            vit_size={"longest_edge": vit_edge, "shortest_edge": min(224, vit_edge)},
            vae_size={"longest_edge": vae_edge, "shortest_edge": min(512, vae_edge)},
            vit_stride=vit_stride,
            vae_stride=vae_stride,
            latent_channels=config.vae_config.z_channels,
        )
        return cls(image_processor, AutoTokenizer.from_pretrained(name, **hub_options))

    # --- sizes, without pixels ----------------------------------------------------------------------------------

    def num_tokens(self, sample: Sample) -> int:
        """How many tokens a sample takes in a pack, from sizes and texts alone; dropped segments take none."""
        return sum(self.segment_tokens(segment) for segment in sample.segments if not segment.dropped)

    def segment_tokens(self, segment: TextSegment | ImageSegment) -> int:
        """How many tokens a segment takes unless it is dropped, markers included."""
        if isinstance(segment, TextSegment):
            return len(self.token_ids(segment.text)) + 2
        width, height = segment.size or image_size(segment.image)
        return self.image_processor.tokens(width, height, segment.view) + 2

    def segment_plans(self, sample: Sample) -> list[tuple[int, str]]:
        """Per segment the tokens it takes unless it is dropped, beside its words, and its words, which `count_words`
        counts together with those of other samples."""
        return [
            (2, each.text)
            if isinstance(each, TextSegment) and isinstance(each.text, str)
            else (self.segment_tokens(each), "")
            for each in sample.segments
        ]

    def count_words(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of many texts takes without markers; together they go faster than one by one."""
        tokenizer = self.tokenizer.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def token_ids(self, text: str | Sequence[int]) -> list[int]:
        """Ids without markers; a list of ids passes through."""
        if isinstance(text, str):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in text]

    def open_source(self, image: Any, name: str = "image"):
        """Opens an image that is edited or asked about and fits it to the VAE's sizes, as the reference does before
        either encoder sees it."""
        return self.image_processor.fit(image, "vae", name=name)

    def output_size(self, source) -> tuple[int, int]:
        """(width, height) of an edit: the fitted source's own."""
        return source.size

    def default_size(self, config: BagelConfig) -> tuple[int, int]:
        """(width, height) of a drawing: the largest square the model has positions for."""
        side = 8 * config.latent_patch_size * config.max_latent_size
        longest = self.image_processor.vae_size["longest_edge"]
        return (min(side, longest),) * 2

    def drawn(self, picture) -> torch.Tensor:
        """A picture as pixels (3, h, w) in [-1, 1] of the view that the model draws."""
        return self.image_processor.prepare(picture, "vae")

    def to_pil(self, pixels: torch.Tensor):
        """Pixels (3, h, w) in [-1, 1] as a PIL image."""
        return self.image_processor.to_pil(pixels)

    # --- layout -------------------------------------------------------------------------------------------------

    def _lay_out(self, sample: Sample, pixels: list[torch.Tensor | None]) -> TokenRow:
        """Tokens of a sample; `pixels` holds (3, h, w) for every image that is not dropped."""
        row = TokenRow()
        for segment, image in zip(sample.segments, pixels):
            if isinstance(segment, TextSegment):
                if not segment.dropped:
                    self._add_text(row, segment)
            elif segment.dropped:
                row.position += 1  # the reference keeps the place of a dropped image
            else:
                self._add_image(row, segment, image)
        return row

    def _add_text(self, row: TokenRow, segment: TextSegment) -> None:
        ids = self.token_ids(segment.text)
        labels = [*ids, self.eos_id, -100] if segment.loss else None
        positions = row.position + np.arange(len(ids) + 2)
        row.append([self.bos_id, *ids, self.eos_id], [TEXT] * (len(ids) + 2), CAUSAL, positions, labels)
        row.position += len(ids) + 2

    def _add_image(self, row: TokenRow, segment: ImageSegment, pixels: torch.Tensor) -> None:
        count = self.image_processor.tokens(pixels.shape[2], pixels.shape[1], segment.view, resize=False)
        kind = NOISE if segment.loss else FULL
        types = [TEXT, *[VIT if segment.view == "vit" else LATENT] * count, TEXT]
        ids = [self.start_id, *[0] * count, self.end_id]
        row.append(ids, types, kind, np.full(count + 2, row.position))
        row.position += 0 if segment.loss else 1

    def _prepare(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        if isinstance(segment.image, torch.Tensor):
            return segment.image
        picture = open_image(segment.image, name=name)
        if segment.size is not None and tuple(segment.size) != picture.size:
            raise ImageError(
                f"{name} is {picture.width} x {picture.height} pixels, but its row states "
                f"{segment.size[0]} x {segment.size[1]}, by which packs are planned: correct the size columns."
            )
        return self.image_processor.prepare(picture, segment.view, name=name)

    def _pixels(self, sample: Sample) -> list[torch.Tensor | None]:
        _check_views(sample)
        return super()._pixels(sample)

    def _images(self, samples: list[Sample], pixels: list[list[torch.Tensor | None]]) -> dict[str, Any]:
        """The ViT views as patches and the VAE views as pixels, in the order of their tokens."""
        views = [
            (segment.view, image)
            for sample, images in zip(samples, pixels)
            for segment, image in zip(sample.segments, images)
            if image is not None
        ]
        vit = [image for view, image in views if view == "vit"]
        vae = [image for view, image in views if view == "vae"]
        features: dict[str, Any] = {}
        if vit:
            patch = self.image_processor.vit_stride
            features["vit_patches"] = torch.cat([self.image_processor.patchify_vit(image) for image in vit])
            features["vit_grids"] = torch.tensor([[x.shape[1] // patch, x.shape[2] // patch] for x in vit])
        if vae:
            features["vae_images"] = vae
        return features

    # --- packs --------------------------------------------------------------------------------------------------

    def pack(
        self, samples: Sequence[Sample], seed: int = 0, epoch: int | Sequence[int] = 0, posterior: str = "mean"
    ) -> BatchFeature:
        """Samples end to end in one sequence, with the draws of each: what the training forward takes.

        Args:
            samples: Whose dropout has been drawn (see `uniedit_hf.recipes.draw_dropout`).
            seed: With `epoch` and the sample's id it decides flow time, noise and posterior draws.
            epoch: See `seed`; one for all samples, or one for each.
            posterior: `"mean"` or `"sample"` of the VAE's posterior.

        Returns:
            `input_ids`, `token_type_ids`, `position_ids`, `split_ids`, `split_kinds`, `sample_ids`, `labels`: (1, L);
            `vit_patches`, `vit_grids`, `vae_images`, `timesteps`, `noise` and `posterior_noise` as the model's
            `forward` says; `num_text_targets` and `num_image_targets`, how many tokens carry a loss.

        Raises:
            ValueError: If there is no sample, or a view is unknown.
        """
        samples = list(samples)
        if not samples:
            raise ValueError("A pack needs at least one sample, but the list of samples is empty.")
        pixels = [self._pixels(sample) for sample in samples]
        rows = [self._lay_out(sample, images).arrays() for sample, images in zip(samples, pixels)]
        features = {name: torch.from_numpy(np.concatenate([row[name] for row in rows]))[None] for name in ATTRIBUTES}
        lengths = [len(row["input_ids"]) for row in rows]
        features["sample_ids"] = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))[None]
        # splits are numbered within a sample; in a pack every split needs a number of its own
        first = np.cumsum([0, *(row["split_ids"].max(initial=-1) + 1 for row in rows)])[:-1]
        features["split_ids"] += torch.from_numpy(np.repeat(first, lengths))[None]
        features |= self._images(samples, pixels)
        epochs = [epoch] * len(samples) if isinstance(epoch, int) else epoch
        features |= self._draws(samples, pixels, seed, epochs, posterior)
        features["num_text_targets"] = int((features["labels"] != -100).sum())
        features["num_image_targets"] = sum(
            len(noise) for noise, time in zip(features.get("noise", ()), features.get("timesteps", ())) if time > 0
        )
        return BatchFeature(features)

    def _draws(self, samples, pixels, seed: int, epochs: Sequence[int], posterior: str) -> dict[str, Any]:
        timesteps, noise, posterior_noise = [], [], []
        for sample, images, epoch in zip(samples, pixels, epochs):
            for index, (segment, image) in enumerate(zip(sample.segments, images)):
                if image is None or segment.view != "vae":
                    continue
                generator = torch_generator(seed, epoch, sample.id, "flow", index)
                tokens, channels, latent = self._latent_shapes(image)
                logit = torch.randn((), generator=generator)
                timesteps.append(logit.sigmoid() if segment.loss else torch.zeros(()))
                drawn = torch.randn(tokens, channels, generator=generator) if segment.loss else None
                noise.append(torch.zeros(tokens, channels) if drawn is None else drawn)
                posterior_noise.append(torch.randn(latent, generator=generator))
        if not timesteps:
            return {}
        draws = {"timesteps": torch.stack(timesteps), "noise": noise}
        return draws | ({"posterior_noise": posterior_noise} if posterior == "sample" else {})

    def merge(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several packs end to end in one sequence, with its routing; samples and splits are numbered on."""
        merged: dict[str, Any] = {}
        for name in dict.fromkeys(name for pack in packs for name in pack):
            values = [pack[name] for pack in packs if name in pack]
            if name.startswith("num_"):
                merged[name] = sum(values)
            elif isinstance(values[0], list):
                merged[name] = [item for value in values for item in value]
            elif name in ("sample_ids", "split_ids"):
                first = np.cumsum([0, *(int(value.max()) + 1 for value in values)])
                merged[name] = torch.cat([value + int(start) for value, start in zip(values, first)], dim=1)
            else:
                merged[name] = torch.cat(values, dim=1 if name in ATTRIBUTES else 0)
        return merged | {"routing": self._route(merged)}

    def _route(self, features: dict[str, Any]) -> PackRouting:
        """What the model would otherwise work out of a pack's tensors."""
        stride, times = self.image_processor.vae_stride, features.get("timesteps")
        names = ("input_ids", "token_type_ids", "position_ids", "sample_ids", "split_ids", "split_kinds", "labels")
        return route_pack(
            *(features[name] for name in names),
            vit_grids=features["vit_grids"].tolist() if "vit_grids" in features else (),
            latent_grids=[(x.shape[1] // stride, x.shape[2] // stride) for x in features.get("vae_images", ())],
            drawn=() if times is None else (times > 0).tolist(),
        )

    def _latent_shapes(self, image: torch.Tensor) -> tuple[int, int, tuple[int, int, int]]:
        """Tokens, channels of a token and the latents' shape of pixels (3, h, w)."""
        processor, (height, width) = self.image_processor, image.shape[1:]
        tokens = processor.tokens(width, height, "vae", resize=False)
        channels = processor.latent_channels * (processor.vae_stride // 8) ** 2
        return tokens, channels, (processor.latent_channels, height // 8, width // 8)

    # --- contexts -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        samples: Sample | Sequence[Sample] | None = None,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        add_generation_prompt: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Contexts to write text from, padded on the left: what `generate()` takes.

        Args:
            samples: Contexts as samples; or instead
            images: one image per text, seen by the ViT, before
            text: one text or a list.
            add_generation_prompt: Whether to append the marker that begins an answer.
            return_tensors: Only `"pt"`.

        Raises:
            ValueError: If there is nothing to read, or images and texts differ in number.
        """
        if samples is None:
            samples = _question_samples(images, text)
        samples = [samples] if isinstance(samples, Sample) else list(samples)
        features = self._contexts(samples, add_generation_prompt)
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}, but BAGEL's inputs are torch tensors: use 'pt'.")
        return features

    def guidance_contexts(
        self, samples: Sequence[Sample], thoughts: Sequence[str | None] | None = None
    ) -> BatchFeature:
        """Contexts to draw images from, with those that guidance compares them to: what `generate_images()` takes.

        Each sample gives up to three contexts: itself, itself without its last text, and its texts alone. Contexts
        that are equal are kept once; `branches` (samples, 3) says which row each sample's three are.

        Args:
            samples: What is to be drawn.
            thoughts: What the model wrote about each before drawing; it ends the first context alone, as in the
                reference.
        """
        rows: list[Sample] = []
        index: dict[tuple, int] = {}
        branches = []
        for sample, thought in zip(samples, thoughts or [None] * len(samples)):
            places = []
            full = (*sample.segments, *([TextSegment(thought)] if thought else []))
            for segments in (full, _without_last_text(sample), _texts(sample)):
                key = tuple(_identity(segment) for segment in segments)
                if key not in index:
                    index[key] = len(rows)
                    rows.append(Sample(segments))
                places.append(index[key])
            branches.append(places)
        features = self._contexts(rows, add_generation_prompt=False)
        features["branches"] = torch.tensor(branches)
        return features

    def _contexts(self, samples: list[Sample], add_generation_prompt: bool) -> BatchFeature:
        if not samples:
            raise ValueError("There is nothing to do: the list of requests is empty.")
        pixels = [self._pixels(sample) for sample in samples]
        rows = []
        for sample, images in zip(samples, pixels):
            row = self._lay_out(sample, images)
            if add_generation_prompt:
                row.append([self.bos_id], [TEXT], CAUSAL, [row.position])
            rows.append(row.arrays())
        length = max(len(row["input_ids"]) for row in rows)
        features: dict[str, Any] = {
            name: torch.from_numpy(
                np.stack([np.pad(row[name], (length - len(row[name]), 0), constant_values=value) for row in rows])
            )
            for name, value in ATTRIBUTES.items()
            if name != "labels"
        }
        features["attention_mask"] = (features["token_type_ids"] != PADDING).long()
        features["sample_ids"] = torch.where(features["attention_mask"].bool(), 0, NO_SAMPLE)
        return BatchFeature(features | self._images(samples, pixels))

    # --- text and pixels back -----------------------------------------------------------------------------------

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Token ids to texts, by the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """Token ids to text, by the tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a training forward reads."""
        names = [*ATTRIBUTES, "sample_ids", "attention_mask", "vit_patches", "vit_grids", "vae_images"]
        return [*names, "timesteps", "noise", "posterior_noise"]


def _marker(tokenizer, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path or 'this processor'} does not know the token {token}, which "
            "BAGEL puts around texts and images: use the checkpoint's own tokenizer or add the token to it."
        )
    return index


def _check_views(sample: Sample) -> None:
    for segment in sample.segments:
        if isinstance(segment, ImageSegment) and segment.view not in ("vit", "vae"):
            raise ValueError(
                f"Sample {sample.id or '(no id)'} shows an image in the view {segment.view!r}, but BAGEL has "
                "the views 'vit' (to read) and 'vae' (to read and draw): name one of them."
            )


def _identity(segment: TextSegment | ImageSegment) -> tuple:
    """What makes two segments the same context. Images by identity: the branches of one request share them."""
    if isinstance(segment, TextSegment):
        return (segment.text,) if isinstance(segment.text, str) else tuple(segment.text)
    return (id(segment.image), segment.view)


def _without_last_text(sample: Sample) -> tuple:
    places = [i for i, segment in enumerate(sample.segments) if isinstance(segment, TextSegment)]
    return tuple(segment for i, segment in enumerate(sample.segments) if not places or i != places[-1])


def _texts(sample: Sample) -> tuple:
    return tuple(segment for segment in sample.segments if isinstance(segment, TextSegment))


def _question_samples(images: Any, text: str | Sequence[str] | None) -> list[Sample]:
    texts = [text] if isinstance(text, str) else list(text or [])
    pictures = images if isinstance(images, (list, tuple)) else [images] * (images is not None)
    if pictures and texts and len(pictures) != len(texts):
        raise ValueError(
            f"There are {len(pictures)} images and {len(texts)} texts: give one image for every text, or pass samples "
            "for contexts with several images."
        )
    count = max(len(pictures), len(texts))
    samples = []
    for i in range(count):
        segments = [ImageSegment(pictures[i], "vit")] if pictures else []
        samples.append(Sample(segments + ([TextSegment(texts[i])] if texts else [])))
    return samples
