"""Converts samples to BAGEL's inputs: packs to train on, contexts to write or draw from.

Both use one layout of segments as tokens, as in the reference: every text is between begin and end markers and every
image between image markers; all tokens of an image share one rotary position.

Shapes: L tokens of a sample, V patches of all ViT views, P tokens and C channels of a VAE view.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from uniedit_hf.attention import CAUSAL, FULL, NO_SAMPLE, NOISE
from uniedit_hf.images import ImageError, image_size, open_image
from uniedit_hf.models.sample_processor import IGNORED, PreparedImage, Purpose, SampleProcessor
from uniedit_hf.randomness import torch_generator
from uniedit_hf.segments import ImageSegment, Sample, TextSegment

from .checkpoint_bagel import CheckpointFolder
from .configuration_bagel import LATENT, PADDING, TEXT, VIT, BagelConfig
from .flow import unpatchify
from .image_processing_bagel import BagelImageProcessor
from .routing_bagel import PackRouting, latent_grids, route_pack
from .stored_views import check_size, unpack_view


# Every text between its markers, every image at its place, as in `lay_out`; roles are not written.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set parts = [{'type': 'text', 'text': message['content']}] -%}"
    "{%- else -%}{%- set parts = message['content'] or [] -%}{%- endif -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] != 'text' -%}<|vision_start|><|vision_end|>"
    "{%- elif message['role'] == 'assistant' -%}"
    "<|im_start|>{%- generation -%}{{ part['text'] + '<|im_end|>' }}{%- endgeneration -%}"
    "{%- else -%}<|im_start|>{{ part['text'] }}<|im_end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>{%- endif -%}"
)


class BagelRow:
    """The tokens of one sample, column by column, as segments are appended."""

    def __init__(self):
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in BagelProcessor.token_columns}
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
            "sample_ids": np.zeros(length),
            "labels": np.full(length, IGNORED) if labels is None else labels,
        }
        for name, value in values.items():
            self.columns[name].append(np.asarray(value, dtype=np.int64))
        self.num_splits += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Each column as one array."""
        empty = np.empty(0, dtype=np.int64)
        return {name: np.concatenate([empty, *parts]) for name, parts in self.columns.items()}


def image_processor_of(folder: CheckpointFolder, config: BagelConfig) -> BagelImageProcessor:
    """The image sizes stored with a checkpoint of any layout, or else the released ones, limited to the model's
    positions.
    """
    stored = folder.json("processor_config.json").get("image_processor") or folder.json("preprocessor_config.json")
    vit_stride, vae_stride = config.vision_config.patch_size, 8 * config.latent_patch_size
    square = stored.get("size", {}).get("height", 980)  # settings of SiglipImageProcessor, which servers read
    vit_edge = min(square, config.vision_config.image_size) // vit_stride * vit_stride
    vae_edge = min(1024, config.max_latent_size * vae_stride) // vae_stride * vae_stride
    return BagelImageProcessor(
        vit_size=stored.get("vit_size") or {"longest_edge": vit_edge, "shortest_edge": min(224, vit_edge)},
        vae_size=stored.get("vae_size") or {"longest_edge": vae_edge, "shortest_edge": min(512, vae_edge)},
        vit_stride=vit_stride,
        vae_stride=vae_stride,
        latent_channels=config.vae_config.z_channels,
        **{name: stored[name] for name in ("image_mean", "image_std") if "vit_size" in stored},
    )


class BagelProcessor(SampleProcessor, ProcessorMixin):
    """A tokenizer and an image processor that together turn samples into BAGEL's inputs.

    Args:
        image_processor: Sizes and pixels of both views.
        tokenizer: Must have `<|im_start|>`, `<|im_end|>`, `<|vision_start|>` and `<|vision_end|>`.

    Raises:
        ValueError: If the tokenizer does not have one of the four markers.
    """

    view_names = {"drawing": "vae", "understanding": "vit"}
    token_columns = (
        "input_ids",
        "token_type_ids",
        "position_ids",
        "split_ids",
        "split_kinds",
        "sample_ids",
        "labels",
    )
    numbering_columns = ("split_ids", "sample_ids")
    # Prompts for reasoning, in our words; for a model that was trained with other prompts, set this attribute.
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

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.tokenizer.padding_side = "left"  # pipelines pad by it, and the model continues its contexts
        self.bos_id, self.eos_id, self.start_id, self.end_id = (
            _marker(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        )

    @classmethod
    def from_checkpoint(cls, name, config: BagelConfig, **hub_options) -> BagelProcessor:
        """The processor saved with a checkpoint, or for an official folder one made from its tokenizer and sizes.

        Raises:
            OSError: If there is no tokenizer.
        """
        folder = CheckpointFolder(name, hub_options)
        if folder.has("processor_config.json"):
            return cls.from_pretrained(name, **hub_options)
        if not folder.has("tokenizer.json") and not folder.has("vocab.json"):
            raise OSError(
                f"{name} contains no tokenizer: expected tokenizer.json, or vocab.json with merges.txt, next to the "
                "weights. Copy them from the base model's folder."
            )
        image_processor = image_processor_of(folder, config)
        return cls(image_processor, AutoTokenizer.from_pretrained(name, **hub_options))

    # --- sizes, without pixels ----------------------------------------------------------------------------------

    def segment_lengths(self, sample: Sample) -> list[tuple[int, str]]:
        """For each segment `(extra_tokens, text)`, see `FamilyProcessor`.

        Raises:
            ImageError: If an image without a given size cannot be read.
            ValueError: If a view is unknown.
        """
        return [self._segment_length(segment) for segment in self.in_own_terms(sample).segments]

    def _segment_length(self, segment: TextSegment | ImageSegment) -> tuple[int, str]:
        if isinstance(segment, ImageSegment):
            width, height = segment.size or image_size(segment.image)
            resize = segment.state is None
            return self.image_processor.tokens(width, height, segment.view, resize=resize) + 2, ""
        return (2, segment.text) if isinstance(segment.text, str) else (2 + len(segment.text), "")

    def open_source(self, image: Any, name: str = "image"):
        """Opens an image that is edited or asked about and fits it to the VAE's sizes, as the reference does before
        either encoder sees it."""
        return self.image_processor.fit(image, "vae", name=name)

    def default_size(self, config: BagelConfig) -> tuple[int, int]:
        """(width, height) of a drawing: the largest square for which the model has positions."""
        side = 8 * config.latent_patch_size * config.max_latent_size
        longest = self.image_processor.vae_size["longest_edge"]
        return (min(side, longest),) * 2

    def drawn_tokens(self, width: int, height: int) -> int:
        """See `FamilyProcessor`; unlike a source, a small drawing is not enlarged."""
        return self.image_processor.tokens(width, height, "vae", resize=False) + 2

    def prepare_target(self, image) -> torch.Tensor:
        """An image as a training target: pixels (3, h, w) in [-1, 1]."""
        return self.image_processor.prepare(image, "vae")

    def with_vit_longest_edge(self, longest_edge: int) -> BagelProcessor:
        """A copy whose ViT view has sides of at most this many pixels."""
        processor = copy.deepcopy(self)
        settings = processor.image_processor.to_dict()
        settings["vit_size"] = settings["vit_size"] | {"longest_edge": longest_edge}
        processor.image_processor = type(processor.image_processor)(**settings)
        return processor

    # --- layout -------------------------------------------------------------------------------------------------

    def lay_out(self, sample: Sample, images: Sequence[PreparedImage], purpose: Purpose) -> dict[str, np.ndarray]:
        """Tokens of a sample; a context to write from ends with the marker that begins an answer."""
        row, prepared = BagelRow(), iter(images)
        for segment in sample.segments:
            if isinstance(segment, TextSegment):
                if not segment.dropped:
                    self._add_text(row, segment)
            elif segment.dropped:
                row.position += 1  # the reference keeps the position of a dropped image
            else:
                self._add_image(row, segment, self.num_image_tokens_of(next(prepared)))
        if purpose == "write":
            row.append([self.bos_id], [TEXT], CAUSAL, [row.position])
        return row.arrays()

    def _add_text(self, row: BagelRow, segment: TextSegment) -> None:
        ids = self.token_ids(segment.text)
        labels = [*ids, self.eos_id, IGNORED] if segment.loss else None
        positions = row.position + np.arange(len(ids) + 2)
        row.append([self.bos_id, *ids, self.eos_id], [TEXT] * (len(ids) + 2), CAUSAL, positions, labels)
        row.position += len(ids) + 2

    def _add_image(self, row: BagelRow, segment: ImageSegment, count: int) -> None:
        kind = NOISE if segment.loss else FULL
        types = [TEXT, *[VIT if segment.view == "vit" else LATENT] * count, TEXT]
        ids = [self.start_id, *[0] * count, self.end_id]
        row.append(ids, types, kind, np.full(count + 2, row.position))
        row.position += 0 if segment.loss else 1

    def prepare_segment(self, segment: ImageSegment, name: str, sample_id: str) -> torch.Tensor:
        """Pixels (3, h, w) of a view, its stored encoding, or the latents (16, h/8, w/8) of a drawing. Tensors are
        returned unchanged.

        Raises:
            ImageError: If the image cannot be read, does not have the size given in its row, or its stored encoding
                has another size than this processor uses.
        """
        if segment.state is not None:
            (width, height), side = segment.size, self.image_processor.vae_stride
            return unpatchify(segment.state.latents, side // 8, height // side, width // side)
        if isinstance(segment.image, torch.Tensor):
            return segment.image
        if segment.stored is not None:
            return self._stored_view(segment, name)
        image = open_image(segment.image, name=name)
        if segment.size is not None and tuple(segment.size) != image.size:
            raise ImageError(
                f"{name} is {image.width} x {image.height} pixels, but its row gives {segment.size[0]} x "
                f"{segment.size[1]}, with which packs are planned: correct the size columns."
            )
        return self.image_processor.prepare(image, segment.view, name=name)

    def _stored_view(self, segment: ImageSegment, name: str) -> torch.Tensor:
        view, (width, height) = unpack_view(segment.stored, name), segment.size or image_size(segment.image)
        side = 1 if segment.view == "vit" else self.image_processor.vae_stride // 8
        check_size(view, segment.view, self.image_processor.tokens(width, height, segment.view), side, name)
        return view

    def image_features(self, images: Sequence[PreparedImage]) -> dict[str, Any]:
        """The ViT views as patches and the VAE views as pixels, or their stored encodings, in the order of their
        tokens.
        """
        vit = [each for each in images if each.segment.view == "vit"]
        vae = [each.data for each in images if each.segment.view == "vae"]
        features: dict[str, Any] = {}
        if vit:
            patch = self.image_processor.vit_stride
            sizes = [self._pixels_of(each) for each in vit]
            features["vit_grids"] = torch.tensor([[height // patch, width // patch] for height, width in sizes])
            patches = [self.image_processor.patchify_vit(each.data) for each in vit if each.segment.stored is None]
            known = [each.data.flatten(0, 1) for each in vit if each.segment.stored is not None]
            if patches:
                features["vit_patches"] = torch.cat(patches)
            if known:
                features["vit_features"] = torch.cat(known)
        if vae:
            features["vae_images"] = vae
        made_by = {(each.segment.view, each.segment.stored.made_by) for each in images if each.segment.stored}
        return features | ({"stored_by": sorted(made_by)} if made_by else {})

    def _pixels_of(self, image: PreparedImage) -> tuple[int, int]:
        """Height and width in pixels of a view, also if it was stored or drawn."""
        if image.segment.state is not None:
            return image.segment.size[::-1]
        if image.segment.stored is None:
            return tuple(image.data.shape[1:])
        if image.segment.view == "vae":
            return 8 * image.data.shape[1], 8 * image.data.shape[2]
        patch = self.image_processor.vit_stride
        return patch * image.data.shape[0], patch * image.data.shape[1]

    def num_image_tokens_of(self, image: PreparedImage) -> int:
        """Tokens of a prepared image without markers."""
        height, width = self._pixels_of(image)
        return self.image_processor.tokens(width, height, image.segment.view, resize=False)

    # --- training -----------------------------------------------------------------------------------------------

    def training_features(
        self, sample: Sample, images: Sequence[PreparedImage], seed: int, epoch: int, posterior: str
    ) -> dict[str, Any]:
        """Flow times, noise and posterior draws of all VAE views, and which ViT views were stored, see the model's
        `forward`.
        """
        is_stored = [each.segment.stored is not None for each in images if each.segment.view == "vit"]
        views = {"vit_is_stored": is_stored} if is_stored else {}
        timesteps, noise, posterior_noise = [], [], []
        for image in images:
            if image.segment.view != "vae":
                continue
            generator = torch_generator(seed, epoch, sample.id, "flow", image.index)
            tokens, channels, latent = self._latent_shapes(image)
            logit = torch.randn((), generator=generator)
            state = image.segment.state
            unfinished = state is not None and state.time > 0
            time = torch.tensor(state.time) if unfinished else logit.sigmoid()
            timesteps.append(time if image.segment.loss else torch.zeros(()))
            drawn = torch.randn(tokens, channels, generator=generator) if image.segment.loss else None
            drawn = state.latents if unfinished else drawn  # noise is added to what is as noisy: it stays the same
            noise.append(torch.zeros(tokens, channels) if drawn is None else drawn)
            posterior_noise.append(torch.randn(latent, generator=generator))
        if not timesteps:
            return views
        draws = views | {"timesteps": torch.stack(timesteps), "noise": noise}
        return draws | ({"posterior_noise": posterior_noise} if posterior == "sample" else {})

    def merge(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Joins several packs in one sequence, with its routing; samples and splits are renumbered consecutively."""
        merged = super().merge(packs)
        return merged | {"routing": self._route(merged)}

    def _route(self, features: dict[str, Any]) -> PackRouting:
        """The routing that the model would otherwise compute from a pack's tensors."""
        times = features.get("timesteps")
        names = ("input_ids", "token_type_ids", "position_ids", "sample_ids", "split_ids", "split_kinds", "labels")
        return route_pack(
            *(features[name] for name in names),
            vit_grids=features["vit_grids"].tolist() if "vit_grids" in features else (),
            latent_grids=latent_grids(features.get("vae_images", ()), self.image_processor.vae_stride),
            drawn=() if times is None else (times > 0).tolist(),
        )

    def _latent_shapes(self, image: PreparedImage) -> tuple[int, int, tuple[int, int, int]]:
        """Tokens, channels of a token and the latents' shape of pixels (3, h, w)."""
        processor, (height, width) = self.image_processor, self._pixels_of(image)
        channels = processor.latent_channels * (processor.vae_stride // 8) ** 2
        return self.num_image_tokens_of(image), channels, (processor.latent_channels, height // 8, width // 8)

    # --- contexts -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        samples: Sample | Sequence[Sample] | str | Sequence[str] | None = None,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        **options,
    ) -> BatchFeature:
        """Contexts to write text from, padded on the left: the inputs of `generate()`.

        Args:
            samples: Contexts as samples; or instead of them
            images: one image per text, or a list of images per text, seen by the ViT, before
            text: one text or a list; may also be the first argument.
            options: `add_generation_prompt` (true), whether to append the marker that begins an answer; `padding`,
                `max_length`, `truncation` and `return_tensors`; settings of the image processor for this call.

        Raises:
            ValueError: If there is nothing to read, images and texts differ in number, or a context is too long.
            TypeError: If an option is not known.
        """
        if options.pop("videos", None) is not None:
            raise ValueError("BAGEL reads images and texts, but no videos: give frames as images.")
        if isinstance(samples, str):
            samples = [samples]
        if isinstance(samples, Sample):
            samples = [samples]
        elif samples is None or len(samples) and all(isinstance(each, str) for each in samples):
            samples = _question_samples(images, samples if text is None else text)
        return self.contexts_as(samples, options) if options else self.contexts(samples, "write")

    def with_image_settings(self, **settings) -> BagelProcessor:
        """A processor with changed settings of its image processor; this one if nothing changes.

        Raises:
            TypeError: If there is no such setting.
        """
        if not settings:
            return self
        processor = copy.copy(self)
        processor.image_processor = self.image_processor.with_settings(**settings)
        return processor

    @property
    def context_padding(self) -> dict[str, int]:
        """The token columns of a context, with their values at padding."""
        return {
            "input_ids": 0,
            "token_type_ids": PADDING,
            "position_ids": 0,
            "split_ids": NO_SAMPLE,
            "split_kinds": CAUSAL,
            "sample_ids": NO_SAMPLE,
        }

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call with an image returns."""
        return [*self.context_padding, "attention_mask", "vit_patches", "vit_grids"]


def _marker(tokenizer, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path or 'this processor'} does not have the token {token}, which "
            "BAGEL puts around texts and images: use the checkpoint's own tokenizer or add the token to it."
        )
    return index


def _question_samples(images: Any, text: str | Sequence[str] | None) -> list[Sample]:
    texts = [text] if isinstance(text, str) else list(text or [])
    images = list(images) if isinstance(images, (list, tuple)) else [images] * (images is not None)
    nested = [list(each) if isinstance(each, (list, tuple)) else [each] for each in images]
    if len(texts) == 1 and len(images) > 1 and not any(isinstance(each, (list, tuple)) for each in images):
        nested = [images]
    if nested and texts and len(nested) != len(texts):
        raise ValueError(
            f"There are {len(nested)} images and {len(texts)} texts: give one image, or one list of images, for every "
            "text, or pass samples."
        )
    samples = []
    for i in range(max(len(nested), len(texts))):
        segments = [ImageSegment(image, "vit") for image in nested[i]] if nested else []
        samples.append(Sample(segments + ([TextSegment(texts[i])] if texts else [])))
    return samples
