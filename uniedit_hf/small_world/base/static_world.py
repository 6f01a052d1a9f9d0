"""The tables of `world_tables.py` on the device that trains: images as latents and patches, samples as rows."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import torch

from . import static_vae
from .static_model import NO_LABEL, Weights


ENCODING_BATCH = 500
Table = dict[str, torch.Tensor]


def load_world(path: Path) -> dict:
    """Reads the file that `world_tables.py` wrote, compressed or not."""
    if Path(path).suffix != ".gz":
        return torch.load(path, weights_only=True, mmap=True)
    return torch.load(BytesIO(gzip.decompress(Path(path).read_bytes())), weights_only=True)


class World:
    """All tables on a device.

    Args:
        world: Result of `load_world`.
        vae: Weights of the autoencoder.
        scale: Factor of the latents, applied after
        shift: the shift of the latents.
        device: The device of the tables.
        kept: A file that stores the latents, which take minutes to compute on a CPU; created if missing.
    """

    def __init__(
        self, world: dict, vae: Weights, scale: float, shift: float, device: torch.device, kept: Path | None = None
    ):
        self.vae = {name: weight.to(device).float() for name, weight in vae.items()}
        self.scale, self.shift, self.device = scale, shift, device
        self.words: list[str] = world["words"]
        self.items: dict[str, list[dict]] = world["items"]
        self.real = world["real"].to(device)
        self.tables = {name: _on(table, device) for name, table in world["tables"].items()}
        self.images = world["images"]
        self.patches = to_patches(self.images.to(device))
        if kept is None or not kept.exists():
            self.latents = self._encoded(self.images)
            if kept is not None:
                torch.save(self.latents.half().cpu(), kept)
        else:
            self.latents = torch.load(kept, weights_only=True).to(device).float()

    @torch.no_grad()
    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        tokens = []
        for part in images.split(ENCODING_BATCH):
            pixels = part.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = self.scale * (static_vae.encode(self.vae, pixels.contiguous()) - self.shift)
            tokens.append(static_vae.to_tokens(latents))
        return torch.cat(tokens)

    @torch.no_grad()
    def decoded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents (n, 16, 32) to images uint8 (n, 64, 64, 3) on the CPU."""
        images = []
        for part in tokens.float().split(ENCODING_BATCH):
            pixels = static_vae.decode(self.vae, static_vae.from_tokens(part) / self.scale + self.shift)
            images.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(images)

    def seen_patches(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Patches (..., 16, 768) of images by number, in [-1, 1]."""
        return (self.patches[numbers].to(torch.float32) / 127.5 - 1).to(dtype)

    def only(self, name: str, most_words: int) -> Table:
        """A table without rows longer than a length, cut to that length."""
        table = self.tables[name]
        fits = table["length"] <= most_words
        rows = {key: value[fits] for key, value in table.items()}
        pad = max(0, most_words - rows["text"].shape[1])
        for key, filler in (("text", 0), ("labels", NO_LABEL)):
            rows[key] = torch.nn.functional.pad(rows[key], (0, pad), value=filler)[:, :most_words].contiguous()
        return rows


def to_patches(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) to (n, 16, 768), within a patch (row, column, channel)."""
    grid = images.view(len(images), 4, 16, 4, 16, 3)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(len(images), 16, 768)


def _on(table: Table, device: torch.device) -> Table:
    return {name: value.to(device).long() for name, value in table.items()}
