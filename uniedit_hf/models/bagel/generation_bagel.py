"""Drawing images: Euler steps along the predicted velocity, guided by contexts without text and without images.

Shapes: R requests, rows of unique contexts, P latent tokens of a request, C channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from transformers import Cache, DynamicCache

from uniedit_hf.attention import NOISE, Splits
from uniedit_hf.models.drawing import DrawingStep, StepCallback

from .configuration_bagel import LATENT, PADDING, TEXT
from .flow import Renorm, guide, schedule, unpatchify


@dataclass(frozen=True)
class ImageSettings:
    """How one image is drawn. Requests of one batch may differ in everything but the number of steps.

    Args:
        height: Pixels, a multiple of 16 in the released model.
        width: Pixels, likewise.
        seed: Of the noise the drawing starts from.
        text_guidance_scale: 1 does not guide.
        image_guidance_scale: 1 does not guide.
        guidance_interval: Guidance acts at flow times t with low < t <= high.
        guidance_renorm: `"global"`, `"channel"` or `"text_channel"`, see `flow.guide`.
        guidance_renorm_min: The least factor of the renormalisation, in [0, 1].
        num_timesteps: As the reference counts: 50 are 49 Euler steps.
        timestep_shift: Towards noise; 3 in the released settings.

    Raises:
        ValueError: If a setting is out of its range.
    """

    height: int
    width: int
    seed: int = 0
    text_guidance_scale: float = 4.0
    image_guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    guidance_renorm: Renorm = "global"
    guidance_renorm_min: float = 0.0
    num_timesteps: int = 50
    timestep_shift: float = 3.0

    # what `UniEditPipeline` asks for unless told otherwise
    editing: ClassVar[dict] = {
        "text_guidance_scale": 4.0,
        "image_guidance_scale": 2.0,
        "guidance_interval": (0.0, 1.0),
        "guidance_renorm": "text_channel",
    }
    drawing: ClassVar[dict] = {
        "text_guidance_scale": 4.0,
        "guidance_interval": (0.4, 1.0),
        "guidance_renorm": "global",
    }

    def __post_init__(self):
        for name in ("text_guidance_scale", "image_guidance_scale"):
            if not getattr(self, name) >= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but guidance starts at 1, which switches it off: use 1 or more."
                )
        if not (isinstance(self.guidance_interval, (tuple, list)) and len(self.guidance_interval) == 2):
            raise ValueError(
                f"guidance_interval is {self.guidance_interval!r}, but guidance acts between two flow times: use a "
                "pair such as (0.4, 1.0)."
            )
        if self.guidance_renorm not in ("global", "channel", "text_channel"):
            raise ValueError(
                f"guidance_renorm is {self.guidance_renorm!r}: use 'global', 'channel' or 'text_channel'."
            )
        if not 0 <= self.guidance_renorm_min <= 1:
            raise ValueError(f"guidance_renorm_min is {self.guidance_renorm_min}: use a number from 0 to 1.")
        if self.num_timesteps < 2:
            raise ValueError(
                f"num_timesteps is {self.num_timesteps}, but it takes 2 for a single step: use 2 or more."
            )
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 does not shift.")


@dataclass
class _Context:
    """The encoded contexts of a batch: one row each."""

    cache: Cache
    attention_mask: torch.Tensor  # (rows, past)
    position: torch.Tensor  # (rows,) the rotary position that comes next

    def select(self, rows: torch.Tensor) -> _Context:
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            if layer.is_initialized:
                cache.update(layer.keys[rows], layer.values[rows], index)
        return _Context(cache, self.attention_mask[rows], self.position[rows])


class BagelImageGenerationMixin:
    """Adds `generate_images` to the model that holds `model`, `vae` and `config`."""

    image_settings = ImageSettings

    @torch.no_grad()
    def generate_images(
        self,
        settings: Sequence[ImageSettings],
        branches: torch.Tensor,
        noise: Sequence[torch.Tensor] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """Draws one image for every request.

        Args:
            settings: One per request.
            branches: (R, 3) the context rows of each request: full, without its text, without its images.
            noise: Starts (P, C) to use in place of the seeds.
            callback_on_step_end: Called with every `DrawingStep`; its latents are tokens (P, C).
            contexts: What else `BagelProcessor.guidance_contexts` returns.

        Returns:
            Pixels (3, height, width), about [-1, 1].

        Raises:
            ValueError: See `check_image_settings`.
        """
        latents = self.generate_latents(settings, branches, noise, callback_on_step_end, **contexts)
        return self._pixels(latents, settings)

    def _pixels(self, tokens: Sequence[torch.Tensor], settings: Sequence[ImageSettings]) -> list[torch.Tensor]:
        return self.decode_latents(self.unpatchify(tokens, settings))

    def unpatchify(self, tokens: Sequence[torch.Tensor], settings: Sequence[ImageSettings]) -> list[torch.Tensor]:
        """Latent tokens (P, C) of requests to latents (16, height / 8, width / 8)."""
        patch = self.config.latent_patch_size
        side = 8 * patch
        return [unpatchify(x, patch, s.height // side, s.width // side) for x, s in zip(tokens, settings)]

    @torch.no_grad()
    def generate_latents(
        self,
        settings: Sequence[ImageSettings],
        branches: torch.Tensor,
        noise: Sequence[torch.Tensor] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """As `generate_images`, but returns the latent tokens (P, C) in fp32."""
        self.check_image_settings(settings)
        steps = settings[0].num_timesteps - 1
        context = self._encode_contexts(**contexts)
        device = context.position.device
        latents = [x.to(device, torch.float32) for x in (noise or [self._start(s) for s in settings])]
        times = torch.stack([schedule(steps + 1, s.timestep_shift) for s in settings]).tolist()
        branches, selected, clean = branches.tolist(), {}, list(latents)
        for step in range(steps):
            wanted = [self._branches(s, rows, times[r][step]) for r, (s, rows) in enumerate(zip(settings, branches))]
            pairs = tuple(sorted({(row, r) for r, rows in enumerate(wanted) for row in rows if row is not None}))
            if pairs not in selected:
                selected = {pairs: context.select(torch.tensor([row for row, _ in pairs], device=device))}
            requests = [r for _, r in pairs]
            time = torch.tensor([times[r][step] for r in requests], device=device)
            velocities = self._velocities(selected[pairs], [latents[r] for r in requests], time, settings, requests)
            by_pair = dict(zip(pairs, velocities))
            for r, (s, rows) in enumerate(zip(settings, wanted)):
                full, text_free, image_free = (None if row is None else by_pair[row, r] for row in rows)
                velocity = guide(
                    full, text_free, image_free, s.text_guidance_scale, s.image_guidance_scale,
                    s.guidance_renorm, s.guidance_renorm_min,
                )  # fmt: skip
                clean[r] = latents[r] - velocity * times[r][step]  # where the velocity leads if it stays as it is
                latents[r] = latents[r] - velocity * (times[r][step] - times[r][step + 1])
            if callback_on_step_end is not None:
                now = [row[step] for row in times]
                preview = partial(self._pixels, list(clean), settings)
                made = DrawingStep(step + 1, steps, now, latents, preview)
                callback_on_step_end(made)
                if made.stop:
                    break
        return latents

    def check_image_settings(self, settings: Sequence[ImageSettings]) -> None:
        """Whether these images can be drawn side by side.

        Raises:
            ValueError: If a size does not divide into latent tokens or has more of them than the model has positions
                for, or the numbers of steps differ.
        """
        side = 8 * self.config.latent_patch_size
        longest = side * self.config.max_latent_size
        for s in settings:
            if any(edge % side or not side <= edge <= longest for edge in (s.width, s.height)):
                nearest = [min(max(side, edge // side * side), longest) for edge in (s.width, s.height)]
                raise ValueError(
                    f"An image of {s.width} x {s.height} pixels cannot be drawn: width and height must be multiples "
                    f"of {side} from {side} to {longest}, for example {nearest[0]} x {nearest[1]}."
                )
        counts = sorted({s.num_timesteps for s in settings})
        if len(counts) > 1:
            raise ValueError(
                f"The requests ask for {counts} timesteps, but they are drawn in step: use one number, or one call "
                "for each."
            )

    def _start(self, settings: ImageSettings) -> torch.Tensor:
        side = 8 * self.config.latent_patch_size
        tokens = (settings.height // side) * (settings.width // side)
        generator = torch.Generator().manual_seed(settings.seed)
        return torch.randn(tokens, self.config.latent_token_size, generator=generator)

    @staticmethod
    def _branches(settings: ImageSettings, rows: list[int], time: float) -> list[int | None]:
        """The rows a step needs: full, and where guidance acts those without text and without images."""
        low, high = settings.guidance_interval
        acts = low < time <= high
        return [
            rows[0],
            rows[1] if acts and settings.text_guidance_scale > 1 else None,
            rows[2] if acts and settings.image_guidance_scale > 1 else None,
        ]

    def _encode_contexts(
        self, input_ids, attention_mask, position_ids, token_type_ids, sample_ids, split_ids, split_kinds, **images
    ) -> _Context:
        cache = DynamicCache(config=self.config.text_config)
        if input_ids.shape[1]:
            embeds = self.embed_context(input_ids, token_type_ids, **images)
            splits = Splits(sample_ids, split_ids, split_kinds)
            self.model(embeds, token_type_ids, position_ids, splits, attention_mask, cache)
        taken = torch.where(attention_mask.bool(), position_ids + 1, 0)
        return _Context(cache, attention_mask, torch.nn.functional.pad(taken, (0, 1)).amax(-1))

    def _velocities(self, context: _Context, latents, time, settings, requests) -> list[torch.Tensor]:
        """The velocity (P, C) in fp32 of each context row's own noised image, behind that context."""
        device = time.device
        lengths = [len(x) for x in latents]
        input_ids, types = _image_block(lengths, self.config, device)
        real = (types != PADDING).long()
        spatial = self.unpatchify(latents, [settings[r] for r in requests])
        tokens, index = self.latent_tokens(spatial)
        repeated = time.repeat_interleave(torch.tensor(lengths, device=device))
        embeds = self.model.embed(input_ids, types, latents=tokens, latent_time=repeated, latent_index=index)
        splits = Splits(real - 1, real - 1, torch.full_like(types, NOISE))
        hidden = self.model(
            embeds,
            types,
            context.position[:, None].expand_as(types),
            splits,
            torch.cat([context.attention_mask, real], dim=-1),
            context.cache,
        ).last_hidden_state
        context.cache.crop(-types.shape[1])
        return list(self.model.llm2vae(hidden[types == LATENT]).float().split(lengths))


def _image_block(lengths: list[int], config, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and token types (R, longest + 2) of the images being drawn: marker, latent tokens, marker, padding."""
    ids = torch.zeros(len(lengths), max(lengths) + 2, dtype=torch.long, device=device)
    types = torch.full_like(ids, PADDING)
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length + 1] = config.vision_start_token_id, config.vision_end_token_id
        types[row, : length + 2] = TEXT
        types[row, 1 : length + 1] = LATENT
    return ids, types
