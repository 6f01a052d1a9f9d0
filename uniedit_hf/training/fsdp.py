"""FSDP2: which weights every device keeps whole."""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule


def frozen_encoders(model) -> list[FSDPModule]:
    """The sharded modules of the autoencoder and the understanding encoder, set to stay whole once they are gathered.

    The encoders run once for each size of image in a batch, so devices run them differently often; were they gathered
    each time, devices would wait for each other forever. Call `unshard` on all of them before a forward: it costs
    nothing unless they were sharded since, as they are to be saved.
    """
    encoders = [module for part in model.encoders for module in part.modules() if isinstance(module, FSDPModule)]
    for module in encoders:
        module.set_reshard_after_forward(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
    return encoders
