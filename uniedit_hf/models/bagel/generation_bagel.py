"""Drawing images: Euler steps along the predicted velocity, guided by contexts without text and without images.

Shapes: R requests, rows of unique contexts, P latent tokens of a request, C channels of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils._triton import has_triton
from transformers import DynamicCache

from uniedit_hf.compat import placing_hook
from uniedit_hf.models.family import Drawing, DrawingCallback, DrawingStep, DrawnStep
from uniedit_hf.segments import DrawnState, ImageSegment

from .decoder_bagel import EAGER, Regions, compiled_regions
from .denoising_bagel import MARKERS, Context, Denoiser, contexts_of
from .flow import Renorm, unpatchify
from .sde_bagel import STOCHASTIC, Transition, sampler_of
from .shortcuts_bagel import SAMPLERS, Euler, Sampler


MANY_STEPS = 15  # number of steps from which compiling the layers on a GPU pays off


@dataclass(frozen=True)
class ImageSettings:
    """How one image is drawn. Requests of one batch may differ in everything except the number of steps.

    Args:
        height: Height in pixels, a multiple of 16 in the released model.
        width: Width in pixels, likewise.
        seed: Seed of the initial noise.
        text_guidance_scale: Guidance scale of the text; 1 disables it.
        image_guidance_scale: Guidance scale of the source image; 1 disables it.
        guidance_interval: Guidance acts at flow times t with low < t <= high.
        guidance_renorm: `"global"`, `"channel"` or `"text_channel"`, see `flow.guide`.
        guidance_renorm_min: The smallest factor of the renormalization, in [0, 1].
        num_timesteps: Counted as in the reference: 50 are 49 Euler steps.
        timestep_shift: Shift of the flow time towards noise; 3 in the released settings.
        sampler: `"euler"`, as the reference; `"heun"` (two evaluations a step) and `"unipc"` need fewer steps;
            `"flow_sde"` and `"cps"` draw noise in every step, for reinforcement learning.
        noise_level: Strength of the noise of `"flow_sde"` and `"cps"`.
        sde_window: The first step with noise and the first step without; by default all steps draw noise.
        compute_every: The velocity is computed in every n-th step and extrapolated in between; 1 is exact.
        guidance_every: The guidance term is computed in every n-th guided step and reused in between; 1 is exact.
        first_layer_threshold: All layers but the first are skipped in steps in which what that one adds has changed
            by a smaller share since all ran, see `FirstLayer`; 0 is exact.

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
    sampler: Sampler = "euler"
    compute_every: int = 1
    guidance_every: int = 1
    noise_level: float = 0.8
    sde_window: tuple[int, int] | None = None
    first_layer_threshold: float = 0.0

    # defaults of `UniEditPipeline`
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
            raise ValueError(f"num_timesteps is {self.num_timesteps}, but a single step needs 2: use 2 or more.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}: use one of {', '.join(SAMPLERS)}.")
        if not 0 < self.noise_level <= 1 and self.sampler == "cps" or self.noise_level <= 0:
            raise ValueError(
                f"noise_level is {self.noise_level}: use a number above 0, and for the sampler 'cps' up to 1."
            )
        window = self.sde_window
        if window is not None and not (len(window) == 2 and 0 <= window[0] < window[1] < self.num_timesteps):
            raise ValueError(
                f"sde_window is {window!r}, but there are the steps 0 to {self.num_timesteps - 2}: use a pair such as "
                "(0, 3), the first step with noise and the first without."
            )
        for name in ("compute_every", "guidance_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1, which is exact, or more.")
        if not 0 <= self.first_layer_threshold < 1:
            raise ValueError(
                f"first_layer_threshold is {self.first_layer_threshold}: use 0, which is exact, or a share below 1 "
                "such as 0.1."
            )
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift is {self.timestep_shift}: use a number above 0; 1 does not shift.")


class BagelImageGenerationMixin:
    """Adds `generate_images` to the model that holds `model`, `vae` and `config`."""

    image_settings = ImageSettings
    image_objectives = ("nft", "grpo")
    policy_epsilon = 5e-3  # log-probabilities are means over elements, so that ratios stay near 1
    compile_layers: bool | None = None  # None: for drawings of many steps on a GPU

    @torch.no_grad()
    def generate_images(
        self,
        settings: Sequence[ImageSettings],
        branches: torch.Tensor,
        noise: Sequence[torch.Tensor] | None = None,
        callback_on_step_end: DrawingCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """Draws one image for every request.

        Args:
            settings: One per request.
            branches: (R, 3) the context rows of each request: full, without its text, without its images.
            noise: Initial noise (P, C) to use instead of the seeds.
            callback_on_step_end: Called with every `DrawingStep`; its latents are tokens (P, C).
            contexts: The other outputs of `BagelProcessor.guidance_contexts`.

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
        return [unpatchify(x, patch, *self.latent_grid(s)) for x, s in zip(tokens, settings)]

    @torch.no_grad()
    def generate_latents(
        self,
        settings: Sequence[ImageSettings],
        branches: torch.Tensor,
        noise: Sequence[torch.Tensor] | None = None,
        callback_on_step_end: DrawingCallback | None = None,
        **contexts,
    ) -> list[torch.Tensor]:
        """As `generate_images`, but returns the latent tokens (P, C) in fp32."""
        return self._latents_and_sampler(settings, branches, noise, callback_on_step_end, **contexts)[0]

    @torch.no_grad()
    def draw_to_learn(
        self, settings: Sequence[ImageSettings], branches: torch.Tensor, objective: str, **contexts
    ) -> list[Drawing]:
        """See `PolicyModel`: for `"nft"` the finished latents, for `"grpo"` every stochastic step."""
        tokens, sampler = self._latents_and_sampler(settings, branches, **contexts)
        pixels = self._pixels(tokens, settings)
        drawings = []
        for request, (image, latents, own) in enumerate(zip(pixels, tokens, settings)):
            target = ImageSegment(None, "drawing", loss=True, size=(own.width, own.height))
            if objective == "nft":
                steps = [DrawnStep(replace(target, state=DrawnState(latents.cpu())))]
            else:
                steps = [_drawn_step(target, *each) for each in sampler.transitions[request]]
            drawings.append(Drawing(image, steps))
        return drawings

    def policy_settings(self, objective: str) -> dict[str, Any]:
        """See `PolicyModel`."""
        alone = {"text_guidance_scale": 1.0, "image_guidance_scale": 1.0}
        if objective == "nft":
            return alone
        if self.config.timestep_shift != 1:
            raise ValueError(
                f"timestep_shift is {self.config.timestep_shift}, but objective='grpo' trains at the times of the "
                "sampler: leave it out, and set timestep_shift in generation_kwargs."
            )
        return alone | {"sampler": "cps", "num_timesteps": 15, "sde_window": (0, 3)}

    def check_policy_settings(self, settings: ImageSettings, objective: str) -> None:
        """See `PolicyModel`."""
        if objective == "grpo" and settings.sampler not in STOCHASTIC:
            raise ValueError(
                f"sampler is {settings.sampler!r}, whose steps have no probabilities: use 'cps' or 'flow_sde', or "
                "objective='nft', which works with any sampler."
            )
        if objective == "grpo" and max(settings.text_guidance_scale, settings.image_guidance_scale) > 1:
            raise ValueError(
                "Guidance above 1 draws from another distribution than the one that objective='grpo' trains: set "
                "text_guidance_scale and image_guidance_scale to 1, or use objective='nft'."
            )

    def action_log_probs(self, predicted: torch.Tensor, action: Transition) -> torch.Tensor:
        """See `PolicyModel`: the log-probability (1,) of a step, from its velocity (P, C)."""
        return action.log_probs(predicted)

    def _latents_and_sampler(
        self, settings, branches, noise=None, callback_on_step_end=None, **contexts
    ) -> tuple[list[torch.Tensor], Euler]:
        """Latent tokens (P, C) of every request in fp32, and the sampler that made them."""
        self.check_image_settings(settings)
        rows, steps = branches.tolist(), settings[0].num_timesteps - 1
        encoded = self._encode_contexts(settings, rows, **contexts)
        denoiser = Denoiser(self, settings, rows, encoded, self._regions(encoded[0].position.device, steps))
        device, times = denoiser.time_embeds.device, denoiser.times
        latents = [x.to(device, torch.float32) for x in (noise or [self._start(s) for s in settings])]
        sampler = sampler_of(settings, times)
        for step in range(steps):
            before = latents
            latents, velocities = sampler.step(step, latents, denoiser.velocities)
            if callback_on_step_end is not None:
                now = [each[step] for each in times]
                clean = [x - v * t for x, v, t in zip(before, velocities, now)]  # the predicted clean latents
                made = DrawingStep(step + 1, steps, now, latents, partial(self._pixels, clean, settings))
                callback_on_step_end(made)
                if made.stop:
                    break
        return latents, sampler

    def check_image_settings(self, settings: Sequence[ImageSettings]) -> None:
        """Checks that these images can be drawn in one batch.

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
        samplers = sorted({s.sampler for s in settings})
        if len(samplers) > 1:
            raise ValueError(
                f"The requests ask for the samplers {', '.join(samplers)}: use one, or one call for each."
            )
        counts = sorted({s.num_timesteps for s in settings})
        if len(counts) > 1:
            raise ValueError(
                f"The requests ask for {counts} timesteps, but a batch has one number of steps: use one number, or "
                "one call "
                "for each."
            )

    def _regions(self, device: torch.device, steps: int) -> Regions:
        """The regions of the layers: compiled if `compile_layers` is set, or by default where it pays off."""
        compiles = self.compile_layers
        if compiles is None:
            whole = not hasattr(self, "hf_device_map") and getattr(self, "hf_quantizer", None) is None
            whole = whole and placing_hook(self.model.language_model.layers) is None
            compiles = steps >= MANY_STEPS and device.type == "cuda" and whole and has_triton()
        return compiled_regions() if compiles else EAGER

    def latent_grid(self, settings: ImageSettings) -> tuple[int, int]:
        """Rows and columns of the latent tokens of an image."""
        side = 8 * self.config.latent_patch_size
        return settings.height // side, settings.width // side

    def _start(self, settings: ImageSettings) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed)
        return torch.randn(math.prod(self.latent_grid(settings)), self.config.latent_token_size, generator=generator)

    def _encode_contexts(
        self,
        settings: Sequence[ImageSettings],
        rows: Sequence[Sequence[int]],
        *,
        input_ids, attention_mask, position_ids, token_type_ids, sample_ids, split_ids, split_kinds, **images,
    ) -> list[Context]:  # fmt: skip
        """The context of every row, with room for the largest image to draw from it."""
        cache = DynamicCache(config=self.config.text_config)
        if input_ids.shape[1]:
            embeds = self.embed_context(input_ids, token_type_ids, **images)
            self.model(
                inputs_embeds=embeds, token_type_ids=token_type_ids, position_ids=position_ids,
                attention_mask=attention_mask, sample_ids=sample_ids, split_ids=split_ids, split_kinds=split_kinds,
                past_key_values=cache,
            )  # fmt: skip
        taken = torch.where(attention_mask.bool(), position_ids + 1, 0)
        positions = torch.nn.functional.pad(taken, (0, 1)).amax(-1)
        rooms = [0] * len(input_ids)
        for request, own in zip(settings, rows):
            for row in own:
                rooms[row] = max(rooms[row], math.prod(self.latent_grid(request)) + MARKERS)
        config = self.config.text_config
        size = config.hidden_size // config.num_attention_heads
        like = self.model.vae2llm.weight.new_empty(config.num_key_value_heads, size, device=positions.device)
        return contexts_of(cache, attention_mask, positions, rooms, like)


def _drawn_step(target: ImageSegment, transition: Transition, velocity: torch.Tensor) -> DrawnStep:
    """A stochastic step as what the training forward predicts again."""
    state = DrawnState(transition.before.cpu(), transition.time)
    return DrawnStep(replace(target, state=state), transition, transition.log_probs(velocity).cpu())
