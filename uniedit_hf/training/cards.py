"""Peak figures of accelerators, from their makers' datasheets."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """An accelerator.

    Args:
        name: The driver's name of the device, or its name in the table.
        memory: Bytes; for a CPU, the memory of the machine.
        tflops: Dense bf16 matrix products with fp32 accumulation, 10^12 operations a second; `None` if unknown.
        bandwidth: Memory bandwidth, 10^12 bytes a second; `None` if unknown.
        kind: The device type in torch.
    """

    name: str
    memory: int
    tflops: float | None = None
    bandwidth: float | None = None
    kind: str = "cuda"


# Part of a device's name (the first match decides) -> dense bf16 TFLOP/s and TB/s.
CARDS = {
    "GB200": (2500, 8.0),
    "B300": (2250, 8.0),
    "B200": (2250, 8.0),
    "GH200": (989, 4.0),
    "H200": (989, 4.8),
    "H100 NVL": (835, 3.9),
    "H100 PCIe": (756, 2.0),
    "H100": (989, 3.35),
    "H800": (989, 3.35),
    "H20": (148, 4.0),
    "A100-SXM4-40GB": (312, 1.555),
    "A100-PCIE-40GB": (312, 1.555),
    "A100": (312, 2.039),
    "A800": (312, 2.039),
    "L40S": (362, 0.864),
    "L40": (181, 0.864),
    "L4": (121, 0.3),
    "A40": (149.7, 0.696),
    "A10": (125, 0.6),
    "RTX 6000 Ada": (364, 0.96),
    "RTX A6000": (154.8, 0.768),
    "RTX 5090": (209.5, 1.792),
    "RTX 4090": (165.2, 1.008),
    "RTX 3090": (71, 0.936),
    "MI355X": (2500, 8.0),
    "MI325X": (1307, 6.0),
    "MI300X": (1307, 5.3),
}


def card_named(name: str, memory: int = 0) -> Card:
    """The card of the table that a device's name contains; with unknown speeds if there is none."""
    found = next((speeds for part, speeds in CARDS.items() if part.lower() in name.lower()), (None, None))
    return Card(name, memory, *found)


def card_at_hand(device: torch.device) -> Card:
    """The device that this process trains on; for a CPU, with the memory of the machine."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return card_named(properties.name, properties.total_memory)
    import psutil

    return Card(f"the {device.type.upper()} of this machine", psutil.virtual_memory().total, kind=device.type)


def peak_memory(device: torch.device) -> int | None:
    """The peak bytes of tensors alive at once on a GPU since the last reset; `None` on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
