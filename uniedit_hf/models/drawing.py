"""What a model tells while it draws, the same for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class DrawingStep:
    """A step that was made.

    Args:
        number: Which, from 1.
        total: Of how many.
        times: The flow time, per request, from which the step was made; empty for families without one.
        latents: What is being drawn, per request; a replaced item is what the next step goes on from.
        preview: Makes pixels (3, height, width) per request of what the model now thinks the images will be.
        stop: Set by a callback: draw no further steps.
    """

    number: int
    total: int
    times: list[float]
    latents: list[torch.Tensor]
    preview: Callable[[], list[torch.Tensor]]
    stop: bool = False


StepCallback = Callable[[DrawingStep], None]
