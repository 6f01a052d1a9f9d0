"""Every random draw of a sample comes from a generator seeded by (seed, epoch, sample id, purpose), so neither batch
size, accumulation, number of devices nor resuming change any draw. Draws are made on the CPU in fp32."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends only on the parts, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_random(*parts: str | int) -> random.Random:
    """A `random.Random` for choices that are made without torch (dropout, phrasing)."""
    return random.Random(derive_seed(*parts))


def torch_generator(*parts: str | int) -> torch.Generator:
    """A CPU `torch.Generator` for noise, flow time and posterior draws."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*parts))
