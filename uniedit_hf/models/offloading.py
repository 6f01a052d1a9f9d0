"""Parts of a model that take turns on a device: each is moved there when it works, and back when another one does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import nn

from uniedit_hf.compat import placing_hook


def offload(model: nn.Module, device: torch.device | str | None = None) -> None:
    """Lets the parts of a model take turns.

    Args:
        model: Its `parts_in_turn` are the parts.
        device: Where they work; the GPU if not given.

    Raises:
        ValueError: If the model has no such parts, accelerate or a quantizer has placed them already, or there is no
            GPU.
    """
    name = type(model).__name__
    if not hasattr(model, "parts_in_turn"):
        raise ValueError(f"{name} has no parts that take turns: load it with device_map='auto' and max_memory.")
    if hasattr(model, "hf_device_map") or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"This {name} was quantized or placed by device_map when it was loaded: leave one of the two out."
        )
    device = device or torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        raise ValueError("There is no GPU to offload from: leave out enable_model_cpu_offload(), or name a device.")
    take_turns(model, model.parts_in_turn, torch.device(device))


class Turn(ModelHook):
    """Moves a part to a device when it works, and the other parts back to the CPU.

    Args:
        device: Where the parts work.
        parts: All of them.
    """

    def __init__(self, device: torch.device, parts: Sequence[nn.Module]):
        self.device, self.parts = device, parts

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Leaves the part on the CPU."""
        return module.to("cpu")

    def pre_forward(self, module: nn.Module, *args, **kwargs) -> tuple:
        """The arguments on the device, where the part is from now on."""
        if _device_of(module) != self.device:
            for part in self.parts:
                if part is not module and _device_of(part).type != "cpu":
                    part.to("cpu")
            clear_device_cache()
            module.to(self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def take_turns(model: nn.Module, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Leaves the parts on the CPU until they work, and moves the rest of the model to `device`.

    A part is moved when it is called, when diffusers' autoencoder encodes or decodes, or by `at_work`; then the others
    return to the CPU.

    Args:
        model: Holds the parts.
        parts: The parts.
        device: Where they work.
    """
    in_parts = {id(tensor) for part in parts for tensor in chain(part.parameters(), part.buffers())}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in in_parts:
            tensor.data = tensor.data.to(device)
    for part in parts:
        remove_hook_from_module(part)
        add_hook_to_module(part, Turn(device, parts))


def at_work(part: nn.Module) -> None:
    """Moves a part that is not called itself, if it takes turns."""
    hook = placing_hook(part)
    if hook is not None:
        hook.pre_forward(part)
