"""Faster drawings that are not exact: integrators that need fewer steps, extrapolated velocities, guidance that is
reused for some steps, layers that are skipped. All are settings of a request and off by default.

Shapes: P latent tokens of a request, C channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler


Sampler = Literal["euler", "heun", "unipc", "flow_sde", "cps"]
SAMPLERS = ("euler", "heun", "unipc", "flow_sde", "cps")
FIRST_STEPS = 3  # steps that are always computed, because the velocity changes fastest there
FAR = 4  # with at least this many steps between computed velocities, a line extrapolates better than a parabola


class Reuse:
    """Decides what one request computes in a step, and what it reuses from earlier steps.

    With `compute_every` = n, velocities between every n-th step are extrapolated through the last ones in flow time,
    which is TaylorSeer (arXiv 2503.06923) on the velocity. With `guidance_every` = n, the differences due to guidance
    are computed in every n-th guided step and reused in between.

    Args:
        settings: The request's `ImageSettings`.
        times: Flow times from noise to image.
    """

    def __init__(self, settings, times: Sequence[float]):
        self.settings, self.times = settings, times
        low, high = settings.guidance_interval
        self.acts = [low < time <= high for time in times]
        self.guided = 0  # number of computed guided steps
        self.guides = False  # whether the contexts of guidance are computed in this step
        self.known: list[tuple[float, torch.Tensor]] = []
        self.differences: list[torch.Tensor | None] = [None, None]

    def computes(self, step: int) -> bool:
        """Whether the model is used in this step."""
        changes = step > 0 and self.acts[step] != self.acts[step - 1]
        if changes:
            self.known = []
        last = len(self.times) - 2
        due = (step - FIRST_STEPS) % self.settings.compute_every == 0
        return changes or due or step < FIRST_STEPS or step >= last or not self.known

    def begin(self, step: int) -> None:
        """Begins a step that is computed."""
        self.guides = self.acts[step] and self.guided % self.settings.guidance_every == 0
        self.guided += self.acts[step]

    def branches(self, step: int, full: torch.Tensor, others: Sequence[torch.Tensor | None]) -> list:
        """The velocities (P, C) that guidance compares: of the full context, and of the others, either computed or
        reconstructed from their last difference.
        """
        if self.settings.guidance_every == 1 or not self.acts[step]:
            return [full, *others]
        if self.guides:
            self.differences = [None if other is None else other - full for other in others]
        return [full, *(None if each is None else full + each for each in self.differences)]

    def keep(self, step: int, velocity: torch.Tensor) -> None:
        """Stores a computed guided velocity (P, C)."""
        if self.settings.compute_every > 1:
            others = [each for each in self.known if each[0] != self.times[step]]
            order = 1 if self.settings.compute_every >= FAR else 2
            self.known = [*others[-order:], (self.times[step], velocity)]

    def extrapolated(self, step: int) -> torch.Tensor:
        """The guided velocity (P, C) on the polynomial through the last ones."""
        now, velocity = self.times[step], 0.0
        for i, (time, known) in enumerate(self.known):
            weight = 1.0
            for j, (other, _) in enumerate(self.known):
                if i != j:
                    weight *= (now - other) / (time - other)
            velocity = velocity + weight * known
        return velocity


class FirstLayer:
    """Skips the layers behind the first one in steps in which that one adds nearly what it added before.

    This is first-block caching, as ParaAttention and cache-dit have it. What the other layers add is then that of the
    last step in which all ran. The decision reads one number back from the device.

    Args:
        threshold: The mean change of what the first layer adds to the hidden states of all contexts of a request,
            relative to their mean size, from which on all layers run.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.added: dict[int, torch.Tensor] = {}  # by context, (P, D): what the first layer added
        self.behind: dict[int, torch.Tensor] = {}  # likewise, what the others added

    def skips(self, added: dict[int, torch.Tensor]) -> bool:
        """Whether the others are left out, from what the first layer adds to the contexts of this step."""
        if added.keys() - self.added.keys():
            return False
        known = torch.cat([self.added[row] for row in added]).float()
        change = torch.cat(list(added.values())).float() - known
        return (change.abs().mean() / known.abs().mean()).item() < self.threshold

    def keep(self, row: int, added: torch.Tensor, behind: torch.Tensor) -> None:
        """Remembers what the first layer and the others added (P, D) to one context."""
        self.added[row], self.behind[row] = added, behind


Velocities = Callable[[int, Sequence[torch.Tensor]], list[torch.Tensor]]


class Euler:
    """Euler steps, as in the reference. Times are those of every request, from noise to image."""

    def __init__(self, times: Sequence[Sequence[float]]):
        self.times = times

    def step(self, step: int, latents: list[torch.Tensor], velocities: Velocities) -> tuple[list, list]:
        """The latents (P, C) after this step, and the velocities at its beginning."""
        found = velocities(step, latents)
        return self._moved(step, latents, found), found

    def _moved(self, step: int, latents, velocities) -> list[torch.Tensor]:
        return [x - v * (t[step] - t[step + 1]) for x, v, t in zip(latents, velocities, self.times)]


class Heun(Euler):
    """Two velocities per step, at its beginning and its end; the last step is an Euler step, because it ends at the
    clean image.
    """

    def step(self, step: int, latents: list[torch.Tensor], velocities: Velocities) -> tuple[list, list]:
        moved, found = super().step(step, latents, velocities)
        if step + 2 < len(self.times[0]):
            ahead = velocities(step + 1, moved)
            moved = self._moved(step, latents, [(one + other) / 2 for one, other in zip(found, ahead)])
        return moved, found


class UniPC(Euler):
    """diffusers' multistep predictor and corrector of second order (arXiv 2302.04867), a velocity a step."""

    def __init__(self, times: Sequence[Sequence[float]]):
        super().__init__(times)
        self.schedulers = []
        for each in times:
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
            )
            scheduler.set_timesteps(sigmas=np.array(each[:-1]))
            self.schedulers.append(scheduler)

    def step(self, step: int, latents: list[torch.Tensor], velocities: Velocities) -> tuple[list, list]:
        found = velocities(step, latents)
        moved = [
            scheduler.step(v, scheduler.timesteps[step], x, return_dict=False)[0]
            for scheduler, v, x in zip(self.schedulers, found, latents)
        ]
        return moved, found
