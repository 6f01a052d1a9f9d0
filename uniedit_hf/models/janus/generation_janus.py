"""Draws images token by token, guided by the same context without its texts and by an empty context.

Shapes: R requests, P pairs of a request and one of its contexts, T tokens of an image, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import StaticCache

from uniedit_hf.models.family import Drawing, DrawingCallback, DrawingStep, DrawnStep
from uniedit_hf.segments import ImageSegment, ImageTokens

from .token_drawing import TokenDrawing


@contextmanager
def plain_attention(decoder) -> Iterator[None]:
    """Switches FlexAttention off while decoding: with a cache, transformers 5.23 gives wrong results for single tokens
    (on CPU the seventh image token differs), and a dense mask for one token is cheap.
    """
    chosen = decoder.config._attn_implementation
    if chosen == "flex_attention":
        decoder.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        decoder.set_attn_implementation(chosen)


@contextmanager
def eager_attention(decoder) -> Iterator[None]:
    """Computes attention as a matrix, which other implementations do not return."""
    chosen = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(chosen)


@dataclass(frozen=True)
class JanusImageSettings:
    """How one image is drawn.

    Args:
        height: Height in pixels; the longer side must be the model's size, and the rest of the square is cropped.
        width: Width in pixels, likewise.
        seed: Seed of the drawing.
        text_guidance_scale: Guidance scale of the texts; 1 disables it.
        image_guidance_scale: Guidance scale of the context without texts, that is, of a source image; 1 disables it.
        temperature: 1 samples from the model's distribution, 0 chooses the most likely token.

    Raises:
        ValueError: If a setting is out of its range.
    """

    height: int
    width: int
    seed: int = 0
    text_guidance_scale: float = 5.0
    image_guidance_scale: float = 1.0
    temperature: float = 1.0

    # defaults of `UniEditPipeline`
    editing: ClassVar[dict] = {"text_guidance_scale": 5.0, "image_guidance_scale": 5.0}
    drawing: ClassVar[dict] = {"text_guidance_scale": 5.0}

    def __post_init__(self):
        for name in ("text_guidance_scale", "image_guidance_scale"):
            if not getattr(self, name) >= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but guidance starts at 1, which switches it off: use 1 or more."
                )
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}: use 0 for the most likely tokens, or more.")

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of the logits of the three contexts (full, without texts, empty); their sum is 1."""
        text, image = self.text_guidance_scale, self.image_guidance_scale
        return text, image - text, 1 - image


class JanusImageGenerationMixin:
    """Adds `generate_images` to the model."""

    image_settings = JanusImageSettings
    image_objectives = ("grpo",)
    compile_layers: bool | None = None  # whether to compile the layers on a CPU; on a GPU whole steps are captured

    @torch.no_grad()
    def generate_images(
        self,
        settings: Sequence[JanusImageSettings],
        branches: torch.Tensor,
        callback_on_step_end: DrawingCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """Draws one image for every request.

        Args:
            settings: One per request.
            branches: (R, 3) the context rows of each request: full, without its texts, empty.
            callback_on_step_end: Called with a `DrawingStep` after every token; its latents are the tokens so far, and
                its preview shows missing tokens as the first code, as does a stopped drawing.
            contexts: The other outputs of `JanusProcessor.guidance_contexts`.

        Returns:
            Pixels (3, height, width) in fp32, about [-1, 1].

        Raises:
            ValueError: See `check_image_settings`.
        """
        tokens = self.generate_tokens(settings, branches, callback_on_step_end, **contexts)
        return self._pixels(tokens, settings)

    @torch.no_grad()
    def draw_to_learn(
        self, settings: Sequence[JanusImageSettings], branches: torch.Tensor, objective: str, **contexts
    ) -> list[Drawing]:
        """See `PolicyModel`: one step for each image, all of its tokens."""
        drawn = self._drawn(settings, branches, **contexts)
        drawings = []
        for request, pixels in enumerate(self._pixels(drawn.tokens, settings)):
            ids, own = drawn.tokens[request], settings[request]
            target = _target(ids.tolist(), self.image_tokenizer, own)
            step = DrawnStep(target, (ids, own.temperature), drawn.log_probs[request].cpu())
            drawings.append(Drawing(pixels, [step]))
        return drawings

    def policy_settings(self, objective: str) -> dict[str, Any]:
        """See `PolicyModel`."""
        return {"text_guidance_scale": 1.0, "image_guidance_scale": 1.0, "temperature": 1.0}

    def check_policy_settings(self, settings: JanusImageSettings, objective: str) -> None:
        """See `PolicyModel`."""
        if max(settings.text_guidance_scale, settings.image_guidance_scale) > 1:
            raise ValueError(
                "Guidance above 1 draws from another distribution than the one that objective='grpo' trains: set "
                "text_guidance_scale and image_guidance_scale to 1."
            )
        if not settings.temperature > 0:
            raise ValueError(
                f"temperature is {settings.temperature}, so that all generations of a prompt are the same: use a "
                "number above 0."
            )

    def action_log_probs(self, predicted: torch.Tensor, action: tuple[torch.Tensor, float]) -> torch.Tensor:
        """See `PolicyModel`: the log-probabilities (T,) of an image's tokens, from their logits (T, K)."""
        ids, temperature = action
        return (predicted / temperature).log_softmax(-1).gather(1, ids.to(predicted.device)[:, None])[:, 0]

    def _pixels(self, tokens: torch.Tensor, settings: Sequence[JanusImageSettings]) -> list[torch.Tensor]:
        return [_kept(pixels, each.height, each.width) for pixels, each in zip(self.decode_tokens(tokens), settings)]

    @torch.no_grad()
    def generate_tokens(
        self,
        settings: Sequence[JanusImageSettings],
        branches: torch.Tensor,
        callback_on_step_end: DrawingCallback | None = None,
        **contexts,
    ) -> torch.Tensor:
        """As `generate_images`, but returns the tokens (R, T). All contexts of all requests share one cache."""
        return self._drawn(settings, branches, callback_on_step_end, **contexts).tokens

    def _drawn(self, settings, branches, callback_on_step_end=None, **contexts) -> TokenDrawing:
        """The drawing after its last step."""
        self.check_image_settings(settings)
        with plain_attention(self.model.language_model):
            return self._draw(settings, branches, callback_on_step_end, **contexts)

    def _draw(
        self, settings, branches, callback_on_step_end, *, input_ids, token_type_ids, attention_mask, **images
    ) -> TokenDrawing:
        steps, device = self.config.vision_config.num_image_tokens, input_ids.device
        pairs, mixing = _pairs(settings, branches.tolist())
        rows, requests = (torch.tensor(column, device=device) for column in zip(*pairs))
        mask = attention_mask[rows]
        length = input_ids.shape[1]
        cache = StaticCache(config=self.config.text_config, max_cache_len=_rounded(length + steps))
        hidden = self.model.language_model(
            inputs_embeds=self.embed_context(input_ids, token_type_ids, **images)[rows],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        chances = torch.stack([_chances(each.seed, steps) for each in settings]).to(device)
        drawing = TokenDrawing(self, settings, requests, mixing.to(device), cache, mask, chances)
        drawing.choose(hidden)
        tokens = drawing.tokens
        for step in range(steps):
            if step > 0:
                drawing.step()
            if callback_on_step_end is not None:
                so_far = list(tokens[:, : step + 1])
                made = DrawingStep(step + 1, steps, [], so_far, partial(self._pixels, tokens, settings))
                callback_on_step_end(made)
                tokens[:, : step + 1] = torch.stack(made.latents)
                if made.stop:
                    break
        return drawing

    def check_image_settings(self, settings: Sequence[JanusImageSettings]) -> None:
        """Checks that these images can be drawn.

        Raises:
            ValueError: If the longer side of one is not the model's.
        """
        side = self.config.vision_config.image_size
        for each in settings:
            if max(each.width, each.height) != side or min(each.width, each.height) < 1:
                raise ValueError(
                    f"An image of {each.width} x {each.height} pixels cannot be drawn: Janus-Pro draws {side} x "
                    f"{side}, which may be cropped, so the longer side must be {side}."
                )


def _pairs(settings, branches: list[list[int]]) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The (context row, request) pairs with nonzero weight, and their weights for each request: (R, P)."""
    weights: dict[tuple[int, int], float] = {}
    for request, (each, rows) in enumerate(zip(settings, branches)):
        for row, weight in zip(rows, each.weights):
            weights[row, request] = weights.get((row, request), 0.0) + weight
    counting = {pair: weight for pair, weight in weights.items() if weight}
    mixing = torch.zeros(len(settings), len(counting))
    for number, ((_, request), weight) in enumerate(counting.items()):
        mixing[request, number] = weight
    return list(counting), mixing


def _chances(seed: int, steps: int) -> torch.Tensor:
    """One number in [0, 1) for every token (T,), so that a request draws the same in any batch."""
    return torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rounded(length: int) -> int:
    """Rounds a number of keys up to a multiple of 64, which suits kernels."""
    return -(-length // 64) * 64


def _kept(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crops the center of the square, where the image is: (3, height, width)."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _target(ids: Sequence[int], made_by: str, settings: JanusImageSettings) -> ImageSegment:
    """Tokens that were drawn, as what the model learns to draw."""
    size = (settings.width, settings.height)
    return ImageSegment(None, "drawing", loss=True, size=size, tokens=ImageTokens(tuple(ids), made_by))
