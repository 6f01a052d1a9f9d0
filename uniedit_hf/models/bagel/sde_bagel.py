"""Drawing by stochastic steps, whose probabilities reinforcement learning needs: an ordinary differential equation has
none. Both forms keep the marginal distributions of the flow.

`"flow_sde"` is the form of Flow-GRPO (arXiv 2505.05470), `"cps"` the coefficients-preserving form of Flow-CPS
(arXiv 2509.05952), which leaves no more noise in the latents than their time says.

Shapes: P latent tokens, C channels of a token. Flow time t runs from 1 (noise) to 0 (image), where
x_t = (1 - t) x_0 + t eps and v = eps - x_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniedit_hf.randomness import derive_seed

from .shortcuts_bagel import Euler, Heun, UniPC, Velocities


STOCHASTIC = ("flow_sde", "cps")


@dataclass(frozen=True)
class Transition:
    """One stochastic step.

    Args:
        form: `"flow_sde"` or `"cps"`.
        noise_level: a of the papers.
        before: Latents (P, C) at `time`.
        after: Latents (P, C) at `next_time`.
        time: t.
        next_time: t' < t.
        second_time: The second time of the schedule, which takes the place of 1 where the noise of `"flow_sde"` would
            be infinite.
    """

    form: str
    noise_level: float
    before: torch.Tensor
    after: torch.Tensor
    time: float
    next_time: float
    second_time: float

    def log_probs(self, velocity: torch.Tensor) -> torch.Tensor:
        """The log-probability (1,) of the step, a mean over all elements, from the velocity (P, C).

        That of `"cps"` leaves out scale and normalizer, as its paper does.
        """
        before, after = self.before.to(velocity), self.after.to(velocity)
        mean, scale = step_distribution(
            self.form, before, velocity, self.time, self.next_time, self.noise_level, self.second_time
        )
        squares = (after - mean).square().mean()
        if self.form == "cps":
            return -squares[None]
        return -(squares / (2 * scale**2) + math.log(scale) + math.log(2 * math.pi) / 2)[None]


def step_distribution(
    form: str,
    latents: torch.Tensor,
    velocity: torch.Tensor,
    time: float,
    next_time: float,
    noise_level: float,
    second_time: float,
) -> tuple[torch.Tensor, float]:
    """The mean (P, C) and the standard deviation of the latents after a step."""
    step = next_time - time
    if form == "cps":
        scale = next_time * math.sin(noise_level * math.pi / 2)
        clean, noise = latents - time * velocity, latents + (1 - time) * velocity
        return clean * (1 - next_time) + noise * math.sqrt(next_time**2 - scale**2), scale
    level = noise_level * math.sqrt(time / (1 - (second_time if time == 1 else time)))
    share = level**2 * step / (2 * time)
    mean = latents * (1 + share) + velocity * (step + share * (1 - time))
    return mean, level * math.sqrt(-step)


class Stochastic(Euler):
    """Stochastic steps in a window, Euler steps around it. Noise is a function of each request's seed.

    Args:
        times: The times of every request, from noise to image.
        settings: An `ImageSettings` for every request.

    Attributes:
        transitions: The stochastic steps of every request, each with the velocity (P, C) that led it.
    """

    def __init__(self, times: Sequence[Sequence[float]], settings: Sequence):
        super().__init__(times)
        self.settings = settings
        seeds = (derive_seed(each.seed, "stochastic steps") for each in settings)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.transitions: list[list[tuple[Transition, torch.Tensor]]] = [[] for _ in settings]

    def step(self, step: int, latents: list[torch.Tensor], velocities: Velocities) -> tuple[list, list]:
        """The latents (P, C) after this step, and the velocities it began with."""
        found = velocities(step, latents)
        moved = self._moved(step, latents, found)
        for request, (settings, times) in enumerate(zip(self.settings, self.times)):
            first, last = settings.sde_window or (0, len(times) - 1)
            if first <= step < last and times[step + 1] > 0:  # the last step of all ends in the image
                moved[request] = self._drawn(request, step, latents[request], found[request])
        return moved, found

    def _drawn(self, request: int, step: int, latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        settings, times = self.settings[request], self.times[request]
        where = (times[step], times[step + 1], settings.noise_level, times[1])
        mean, scale = step_distribution(settings.sampler, latents, velocity, *where)
        noise = torch.randn(latents.shape, generator=self.generators[request]).to(latents)
        after = mean + scale * noise
        made = Transition(
            settings.sampler, settings.noise_level, latents, after, times[step], times[step + 1], times[1]
        )
        self.transitions[request].append((made, velocity))
        return after


def sampler_of(settings: Sequence, times: Sequence[Sequence[float]]) -> Euler:
    """The integrator that the settings of requests ask for, all the same one, for requests with these times."""
    name = settings[0].sampler
    if name in STOCHASTIC:
        return Stochastic(times, settings)
    return {"euler": Euler, "heun": Heun, "unipc": UniPC}[name](times)
