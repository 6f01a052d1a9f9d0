"""Optimizers from optional packages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .config import FLASH_ADAMW, UniEditConfig


PACKAGES = {
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "adamw_bnb_8bit": "bitsandbytes",
    "adamw_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    FLASH_ADAMW: "flashoptim",
}


def check_optimizer(args: UniEditConfig) -> None:
    """Checks that the package of the optimizer is installed.

    Raises:
        ValueError: If it is not.
    """
    name = str(getattr(args.optim, "value", args.optim))
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ValueError(f"optim={name!r} needs the package {package}: pip install {package}.")


def flash_adamw(args: UniEditConfig) -> tuple[type, dict[str, Any]]:
    """FlashAdamW (Ortiz et al., arXiv 2602.23349) with these settings: bf16 weights with a stored correction to 24
    bits, and moments of 8 bits. It runs on NVIDIA GPUs only.

    Raises:
        ValueError: If there is no such GPU.
    """
    if args.device.type != "cuda":
        raise ValueError(
            f"optim={FLASH_ADAMW!r} runs only on NVIDIA GPUs, not on {args.device}: leave optim out, or use "
            "adamw_torch_8bit."
        )
    from flashoptim import FlashAdamW

    moments = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return FlashAdamW, {"lr": args.learning_rate, "master_weight_bits": 24, **moments}
