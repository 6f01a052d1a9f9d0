"""The losses that a training forward returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class Losses(ModelOutput):
    """A sum and a count for text and for images, so that the mean is the same for any batching, accumulation and
    number of devices.

    Args:
        text_sum: fp32 scalar, the summed cross entropy of the supervised text tokens.
        text_count: int64 scalar, number of supervised text tokens.
        image_sum: fp32 scalar; for BAGEL the squared velocity error, averaged over the channels of a latent token and
            summed over the supervised tokens; for Janus-Pro the summed cross entropy of the image tokens.
        image_count: int64 scalar, number of supervised image tokens.
    """

    text_sum: torch.Tensor | None = None
    text_count: torch.Tensor | None = None
    image_sum: torch.Tensor | None = None
    image_count: torch.Tensor | None = None

    @property
    def text(self) -> torch.Tensor:
        """The mean text loss of this batch, 0 without supervised text."""
        return self.text_sum / self.text_count.clamp(min=1)

    @property
    def image(self) -> torch.Tensor:
        """The mean image loss of this batch, 0 without supervised image tokens."""
        return self.image_sum / self.image_count.clamp(min=1)
