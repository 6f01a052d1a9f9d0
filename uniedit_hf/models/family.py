"""The contract of a model family: everything that trainer, pipeline and page use of a model and of its processor.

`FamilyModel` and `FamilyProcessor` are the protocols; `check_family` names missing members. The base class of both
processors, which implements most of the second protocol, is `SampleProcessor` in `uniedit_hf.models.sample_processor`.
docs/add_a_model.md shows a family of fifty lines.

Shapes: B contexts, L tokens of a row, R requests, h and w pixels of an image, which is fp32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature
from transformers.utils import logging

from uniedit_hf.compat import QuietCheckpointing, keep_kernels_apart
from uniedit_hf.losses import Losses
from uniedit_hf.recipes import Conditioning
from uniedit_hf.segments import ImageSegment, Sample, View


logger = logging.get_logger(__name__)
keep_kernels_apart()


# --- drawing --------------------------------------------------------------------------------------------------------


@dataclass
class DrawingStep:
    """A step of a drawing, handed to a callback.

    Args:
        number: Step index, starting at 1.
        total: Number of steps.
        times: The flow time, per request, from which the step was made; empty for families without one.
        latents: The unfinished images, per request; the next step continues from an item that is replaced.
        preview: Returns the predicted final images, pixels (3, height, width) per request.
        stop: Set by a callback: draw no further steps.
    """

    number: int
    total: int
    times: list[float]
    latents: list[torch.Tensor]
    preview: Callable[[], list[torch.Tensor]]
    stop: bool = False


DrawingCallback = Callable[[DrawingStep], None]


@dataclass(frozen=True)
class BaseImageSettings:
    """How one image is drawn. A family may add fields with defaults; its constructor raises `ValueError` for a setting
    out of its range.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        seed: Seed of the drawing.
        text_guidance_scale: Classifier-free guidance scale for the text; 1 disables it.
        image_guidance_scale: The same for the source image.

    Attributes:
        editing: Settings in which `UniEditPipeline.edit` differs from the defaults.
        drawing: The same for `UniEditPipeline.generate`.
    """

    height: int
    width: int
    seed: int = 0
    text_guidance_scale: float = 1.0
    image_guidance_scale: float = 1.0

    editing: ClassVar[dict[str, Any]] = {}
    drawing: ClassVar[dict[str, Any]] = {}


# --- learning from what was drawn ------------------------------------------------------------------------------------


@dataclass
class PackPredictions:
    """The predictions of a model at the supervised tokens of a pack, in the order of the sequence, in fp32.

    Args:
        text_logits: (text targets, words).
        text_labels: (text targets,) the tokens to predict.
        image: (image targets, C) velocities, or (image targets, K) logits of codes.
        image_targets: (image targets, C) the velocities to predict, or (image targets,) the codes.
        image_times: (image targets,) flow times; `None` for families without.
    """

    text_logits: torch.Tensor
    text_labels: torch.Tensor
    image: torch.Tensor
    image_targets: torch.Tensor
    image_times: torch.Tensor | None = None


Criterion = Callable[[PackPredictions], Losses]


@dataclass
class DrawnStep:
    """The decisions of a model in a part of a drawing.

    Args:
        segment: Put in the place of the target, it makes the training forward predict this part again.
        action: The input of `action_log_probs` for this part; `None` where the drawing has no probabilities.
        log_probs: (decisions,) log-probabilities of the model that drew.
    """

    segment: ImageSegment
    action: Any = None
    log_probs: torch.Tensor | None = None


@dataclass
class Drawing:
    """An image that was drawn, with the data needed to learn from it.

    Args:
        pixels: (3, h, w).
        steps: The decisions, in order.
    """

    pixels: torch.Tensor
    steps: list[DrawnStep]


class PolicyModel(Protocol):
    """The interface that `UniEditGRPOTrainer` needs from a `FamilyModel` that draws. It also needs
    `forward(**pack, criterion=...)`, which returns the criterion's result for the `PackPredictions`.

    Attributes:
        image_objectives: The objectives for its drawings, `"nft"`, `"grpo"` or both, the default first.
        policy_epsilon: How far the ratio of its decisions' probabilities may move in `"grpo"`.
    """

    image_objectives: tuple[str, ...]
    policy_epsilon: float

    def draw_to_learn(
        self, settings: Sequence[BaseImageSettings], branches: torch.Tensor, objective: str, **contexts
    ) -> list[Drawing]:
        """As `generate_images`, with the steps that the objective learns from."""

    def policy_settings(self, objective: str) -> dict[str, Any]:
        """Fields of `image_settings` that the objective needs, unless set otherwise. Raises `ValueError` if it cannot
        be used."""

    def check_policy_settings(self, settings: BaseImageSettings, objective: str) -> None:
        """Raises `ValueError` if drawings with these settings cannot be learned from."""

    def action_log_probs(self, predicted: torch.Tensor, action: Any) -> torch.Tensor:
        """The log-probabilities (decisions,) of an action, from what the model predicts at the tokens of its
        segment."""


# --- the contract ---------------------------------------------------------------------------------------------------


class FamilyModel(Protocol):
    """A `PreTrainedModel` of a family, with all its heads. It must also be a `PreTrainedModel`, with
    configuration, device, dtype, saving and loading, and `generate` of `GenerationMixin`.

    Attributes:
        encoders: The parts that images go through before they are tokens; under FSDP each device keeps them whole.
        training_options: The options among `timestep_shift`, `vit_longest_edge`, `posterior` and `sample_timesteps` of
            `UniEditConfig` that apply to this family; the others are refused.
        image_settings: The class of `settings` of `generate_images`: fields as in `BaseImageSettings`, and more.
        pack_attention: The attention implementation that the trainer chooses for packs on a GPU.
    """

    encoders: Sequence[nn.Module]
    training_options: frozenset[str]
    image_settings: type
    pack_attention: str | dict[str, str]

    def forward(self, **pack) -> Losses:
        """The losses of a pack, as returned by `FamilyProcessor.pack` or `merge`, without its `num_` counts. A family
        with `image_objectives` also takes a `criterion`, see `PolicyModel`.

        Every trainable parameter must be in the graph for any pack, or DDP and FSDP would wait for it forever.
        """

    def generate(self, *, max_new_tokens: int, **context) -> torch.Tensor:
        """Token ids (B, L + new) after the contexts that the processor returns when it is called."""

    def generate_images(
        self,
        settings: Sequence[BaseImageSettings],
        branches: torch.Tensor,
        callback_on_step_end: DrawingCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """One image (3, height, width) for each of R settings.

        Args:
            settings: One per request. A request gives the same image in any batch.
            branches: (R, 3) rows of the contexts: the condition, the condition without its text, without its images.
            callback_on_step_end: Called after every step.
            contexts: The other outputs of `FamilyProcessor.guidance_contexts`.
        """

    def check_image_settings(self, settings: Sequence[BaseImageSettings]) -> None:
        """Raises `ValueError` if these images cannot be drawn, or not in one batch."""

    def round_trip(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images (3, h, w) encoded and decoded: the best that the model could draw."""

    def trainable_parts(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by purpose.

        Returns:
            `vit`: the understanding encoder; `und`: the expert that understands and writes; `gen`: the expert that
                draws; `text_only`: parameters that get a gradient only from the text loss; `fixed`: parameters that
                are never trained. A family without separate experts has its whole decoder in `und`.
        """

    def compile_for_training(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compiles the layers of `forward`, with arguments of `torch.compile`."""

    def lora_target_modules(self, und: bool = True, gen: bool = True, text: bool = False) -> str:
        """A regular expression of PEFT for the linear layers to adapt: of `und`, of `gen`, and with `text` also those
        that only the text loss reaches."""


class FamilyProcessor(Protocol):
    """A `ProcessorMixin` of a family, which turns samples into the inputs of its model. Saving, loading, `tokenizer`,
    `decode` and `batch_decode` are those of `ProcessorMixin`; `SampleProcessor` implements most of the rest.

    Attributes:
        view_names: The family's own name of each view, in the order in which it reads the views of a source.
        conditioning: How the family is tuned unless set otherwise.
        dropped_segments_keep_tokens: Whether a dropped segment has as many tokens as one that is not dropped.
        thinking_prompts: Texts that ask for reasoning before an `"answer"` and before it may `"draw"`; `None` if the
            family does not reason.
    """

    view_names: dict[View, str]
    conditioning: Conditioning
    dropped_segments_keep_tokens: bool
    thinking_prompts: dict[str, str] | None

    def make_conditioning(self, **overrides) -> Conditioning:
        """The family's conditioning with some fields set; views may have the family's own names."""

    def num_tokens(self, sample: Sample) -> int:
        """Tokens of a sample in a pack, from sizes and texts alone."""

    def segment_lengths(self, sample: Sample) -> list[tuple[int, str]]:
        """For each segment `(extra_tokens, text)`: its tokens other than text (markers, image tokens), and the text
        itself, to be tokenized in one batch by `count_text_tokens`. Dropped segments count as if they were not
        dropped.
        """

    def count_text_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without markers."""

    def with_pixels(self, sample: Sample) -> Sample:
        """The sample with its images opened and prepared. Raises `ImageError` if one cannot be used."""

    def pack(self, samples: Sequence[Sample], seed: int, epoch: int | Sequence[int], posterior: str) -> BatchFeature:
        """Samples end to end in one sequence (1, L), the inputs of `forward`, with `num_text_targets` and
        `num_image_targets`, the numbers of tokens with each loss. Every random draw depends on (seed, epoch, sample
        id).
        """

    def merge(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several packs end to end in one."""

    def __call__(self, samples: Sequence[Sample]) -> BatchFeature:
        """Contexts to write text after, padded on the left: the inputs of `generate`."""

    def guidance_contexts(
        self, samples: Sequence[Sample], thoughts: Sequence[str | None] | None = None
    ) -> BatchFeature:
        """Contexts to draw images from, with `branches`: the inputs of `generate_images`."""

    def open_source(self, image: Any, name: str = "image") -> Image.Image:
        """Opens an image to edit or to ask about. Raises `ImageError` if it cannot be used."""

    def output_size(self, source: Image.Image) -> tuple[int, int]:
        """(width, height) of an edit of what `open_source` returned."""

    def default_size(self, config) -> tuple[int, int]:
        """(width, height) of a drawing if no size is given."""

    def drawn_tokens(self, width: int, height: int) -> int:
        """Number of tokens of a drawing of this size, including markers."""

    def prepare_target(self, image: Image.Image) -> torch.Tensor:
        """An image as a training target: pixels (3, h, w), for `round_trip`."""

    def to_pil(self, pixels: torch.Tensor) -> Image.Image:
        """Pixels (3, h, w) as an image. Raises `ValueError` if some are NaN."""


class ModelDefaults(QuietCheckpointing):
    """Default implementations for a model; must come before `PreTrainedModel` among the bases.

    Attributes:
        part_of_prefix: Prefixes of parameter names, each with its part of `trainable_parts`; the rest is `und`.
    """

    encoders: Sequence[nn.Module] = ()
    training_options: frozenset[str] = frozenset()
    image_settings: type = BaseImageSettings
    pack_attention: str | dict[str, str] = "sdpa"
    image_objectives: tuple[str, ...] = ()
    policy_epsilon: float = 0.2
    part_of_prefix: ClassVar[dict[str, str]] = {}

    def trainable_parts(self) -> dict[str, list[nn.Parameter]]:
        """See `FamilyModel`."""
        parts: dict[str, list[nn.Parameter]] = {name: [] for name in ("vit", "und", "gen", "text_only", "fixed")}
        for name, parameter in self.named_parameters():
            found = (part for prefix, part in self.part_of_prefix.items() if name.startswith(prefix))
            parts[next(found, "und")].append(parameter)
        return parts

    def check_image_settings(self, settings: Sequence[BaseImageSettings]) -> None:
        """Accepts any image, in any batch."""

    def compile_for_training(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compiles nothing, and logs a warning."""
        logger.warning(f"torch_compile has no effect on {type(self).__name__}, which does not compile its layers.")


def members(protocol: type) -> set[str]:
    """The names of the members of a protocol of this module."""
    return {name for name in (*protocol.__annotations__, *vars(protocol)) if name == "__call__" or name[0] != "_"}


def check_family(model, processor) -> None:
    """Refuses a model or processor with missing members.

    Raises:
        ValueError: Names the missing members.
    """
    for each, protocol in ((model, FamilyModel), (processor, FamilyProcessor)):
        if missing := sorted(name for name in members(protocol) if not hasattr(each, name)):
            raise ValueError(
                f"{type(each).__name__} has no {', '.join(missing)}, which {protocol.__name__} of "
                "uniedit_hf.models.family requires: use the family's class with all heads, or see "
                "docs/add_a_model.md."
            )
