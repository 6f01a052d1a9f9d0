"""How the layers run: whether they are compiled, and which activations are kept for the backward pass."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

import torch
from torch.utils._triton import has_triton
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


aten = torch.ops.aten
# Products and attention take nearly all of the time and are kept. Norms, activations and rotary positions are
# recomputed.
DEAR = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def checkpointing_mode(asked: bool | str) -> bool | str:
    """The value of `activation_checkpointing` as `True` (full), `False` (none) or `"selective"`.

    Raises:
        ValueError: If it has another value.
    """
    words = {"full": True, "true": True, "none": False, "false": False, "selective": "selective"}
    mode = words.get(str(asked).lower())
    if mode is None:
        raise ValueError(f"activation_checkpointing is {asked!r}: use 'full', 'selective' or 'none'.")
    return mode


def missing_compiler(use_cpu: bool) -> str | None:
    """The requirement of `torch.compile` that is missing on this machine, or None."""
    gpu = torch.cuda.is_available() and not use_cpu
    if gpu and not has_triton():
        return "the package triton"
    names = [os.environ[name] for name in ("CC", "CXX") if name in os.environ] or ["g++", "gcc", "clang"]
    return None if any(shutil.which(name) for name in names) else f"a C compiler ({' or '.join(names)})"


def wants_compiler(asked: bool | None, backend: str | None, mode: str | None, use_cpu: bool) -> bool:
    """Whether to compile the layers: as set by `torch_compile`, and by default on a GPU.

    Raises:
        ValueError: If they should be compiled and the compiler is missing.
    """
    if asked is None and (backend is not None or mode is not None):
        asked = True
    missing = missing_compiler(use_cpu) if backend in (None, "inductor") else None
    if asked and missing is not None:
        raise ValueError(f"torch_compile needs {missing}, which is not installed: install it, or set it to false.")
    return (torch.cuda.is_available() and not use_cpu and missing is None) if asked is None else asked


def set_checkpointing(model, mode: bool | str, compiled: bool, options: dict[str, Any] | None = None) -> None:
    """Sets which activations the layers of a model keep.

    Compiled layers are selective by themselves, because the compiler recomputes cheap operations. There `selective`
    needs no checkpoints.

    Args:
        model: A model of transformers, or adapters around one.
        mode: `"full"`, `"selective"` or `"none"`.
        compiled: Whether the layers are compiled.
        options: Arguments of `torch.utils.checkpoint.checkpoint`, with `every_n_layers` and `offload` as in
            transformers.
    """
    mode = checkpointing_mode(mode)
    if not mode or (mode == "selective" and compiled):
        model.activation_checkpointing_disable()
        return
    options = {"use_reentrant": False} | (options or {})
    layers = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(options, **layers)


def _policy(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
