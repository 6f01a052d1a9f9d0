"""FSDP2: which modules are sharded as one unit, which weights every device keeps in full, and how to gather full
weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from transformers.utils import logging


logger = logging.get_logger(__name__)


def sharded_units(model) -> list[str]:
    """Names of the module classes that are sharded as one unit: the layers of the decoder, and each encoder
    as a whole. An encoder runs once for each image size in a batch, so its layers run a different number of times on
    each device, and sharding them would deadlock; the encoder itself is called once.
    """
    layers = [name for name in model._no_split_modules if name.endswith("DecoderLayer")]
    return layers + [type(encoder).__name__ for encoder in model.encoders]


def frozen_encoders(model) -> list[FSDPModule]:
    """The sharded frozen encoders, set to stay unsharded once they are gathered.

    The autoencoder is used through `encode`, not `forward`, which does not gather by itself. Call `unshard` on all of
    them
    before a forward: it costs nothing unless they were sharded again, for example to be saved.
    """
    encoders = [
        module
        for part in model.encoders
        for module in part.modules()
        if isinstance(module, FSDPModule) and not any(each.requires_grad for each in module.parameters())
    ]
    for module in encoders:
        module.set_reshard_after_forward(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
    return encoders


@contextmanager
def whole_weights(model: torch.nn.Module, reshard_after_forward: bool, kept: list[FSDPModule]) -> Iterator[None]:
    """Gathers all weights on every device, for a use that does not go through `forward`, and shards them again.

    Args:
        model: Sharded or not.
        reshard_after_forward: The setting to restore for the layers.
        kept: Modules that stay unsharded afterwards.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    layers = [module for module in modules if module is not model and module not in kept]
    for module in modules:
        module.unshard()
    for module in layers:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in layers:
            module.set_reshard_after_forward(reshard_after_forward, recurse=False)
        for module in modules:
            if module not in kept:
                module.reshard()


@torch.no_grad()
def gathered_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights in full, in the memory of the first process; empty on the others. All processes must call it
    together.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    state = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if first:
            state[name] = whole.cpu()
    return state
