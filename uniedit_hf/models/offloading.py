"""Parts of a model that take turns on a device: each is moved there when it works, and back when another one does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
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


def take_turns(model: nn.Module, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Leaves the parts on the CPU until they work, and moves the rest of the model to `device`.

    A part is moved when it is called, when diffusers' autoencoder encodes or decodes, or by `at_work`; then the part
    before it in the list (before the first, the last) returns to the CPU.

    Args:
        model: Holds the parts.
        parts: In the order in which they work.
        device: Where they work.
    """
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    in_parts = {id(tensor) for part in parts for tensor in chain(part.parameters(), part.buffers())}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in in_parts:
            tensor.data = tensor.data.to(device)
    before = None
    for part in parts:
        remove_hook_from_module(part)
        _, before = cpu_offload_with_hook(part, device, prev_module_hook=before)
    placing_hook(parts[0]).prev_module_hook = before


def at_work(part: nn.Module) -> None:
    """Moves a part that is not called itself, if it takes turns."""
    hook = placing_hook(part)
    if hook is not None:
        hook.pre_forward(part)
