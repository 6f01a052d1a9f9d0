"""An exponential moving average of the trained weights, saved as a checkpoint of its own under `ema/`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


FOLDER = "ema"
AVERAGE_FILE = "average.safetensors"


class WeightAverage:
    """shadow <- decay * shadow + (1 - decay) * weight after every step, in fp32, for the parameters that are trained.

    Args:
        model: The model, whose parameters are read at every update.
        decay: Of the average; no warm-up, as in the reference.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.shadow = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Takes in the weights after an optimizer step."""
        weights = {name: parameter for name, parameter in model.named_parameters() if name in self.shadow}
        torch._foreach_lerp_(
            list(self.shadow.values()), [weights[name].detach().float() for name in self.shadow], 1 - self.decay
        )

    def save(self, model, folder: str | os.PathLike) -> None:
        """Writes the averaged model to `folder/ema`, ready for `from_pretrained(folder, subfolder="ema")`, and the
        average itself in full precision beside it."""
        target = Path(folder, FOLDER)
        target.mkdir(parents=True, exist_ok=True)
        state = {
            name: self.shadow[name].to(weight.dtype) if name in self.shadow else weight
            for name, weight in model.state_dict().items()
        }
        model.save_pretrained(target, state_dict=state)
        save_file(self.shadow, target / AVERAGE_FILE)

    def load(self, folder: str | os.PathLike) -> None:
        """Goes on from a checkpoint.

        Raises:
            OSError: If the checkpoint holds no average.
        """
        path = Path(folder, FOLDER, AVERAGE_FILE)
        if not path.is_file():
            raise OSError(f"{path} is missing: the run was not averaging when it was saved; set ema_decay to none.")
        stored = load_file(path)
        for name, shadow in self.shadow.items():
            shadow.copy_(stored[name])
