"""An exponential moving average of the trained weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .sharded_state import local_part, whole


FOLDER = "ema"
STATE_FILE = "weight_average.safetensors"


class WeightAverage:
    """shadow <- decay * shadow + (1 - decay) * weight after every step, in fp32, for the parameters that are trained.

    Args:
        model: The model on its device; the average starts from its weights.
        decay: Decay of the average; without warm-up, as in the reference.
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
        """Updates the average after an optimizer step."""
        weights = dict(model.named_parameters())
        shadows = [local_part(shadow) for shadow in self.shadow.values()]
        found = [local_part(weights[name].detach()).float() for name in self.shadow]
        torch._foreach_lerp_(shadows, found, 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Copies the average into the model's weights."""
        weights = dict(model.named_parameters())
        for name, shadow in self.shadow.items():
            weights[name].copy_(shadow)

    def save_model(self, model, folder: str | os.PathLike) -> None:
        """Writes the averaged model to `folder/ema`, ready for `from_pretrained(folder, subfolder="ema")`."""
        self.save_state_dict(model, folder, self.gathered(model, model.state_dict()))

    @torch.no_grad()
    def gathered(self, model, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The full weights of a model, with the average in place of the trained ones. Sharded averages are gathered,
        so all devices must call this together.

        Args:
            model: The model in training.
            state: Its full weights; empty on devices that keep none.
        """
        averaged = {}
        for name, shadow in self.shadow.items():
            full = whole(shadow)
            if name in state:
                averaged[name] = full.to(state[name].device, state[name].dtype)
        return state | averaged

    def save_state_dict(self, model, folder: str | os.PathLike, state: dict[str, torch.Tensor]) -> None:
        """Writes these weights to `folder/ema`."""
        model.save_pretrained(Path(folder, FOLDER), state_dict=state)

    def save_state(self, folder: str | os.PathLike) -> None:
        """Writes the average itself, in full precision."""
        save_file(self.shadow, Path(folder, STATE_FILE))

    def load_state(self, folder: str | os.PathLike) -> None:
        """Resumes from a checkpoint.

        Raises:
            OSError: If the checkpoint contains no average.
        """
        path = Path(folder, STATE_FILE)
        if not path.is_file():
            raise OSError(f"{path} is missing: the checkpoint was saved without an average; leave out ema_decay.")
        stored = load_file(path)
        for name, shadow in self.shadow.items():
            shadow.copy_(stored[name])
