"""Pictures to the tokens of Janus-Pro's VQ autoencoder and back.

The reference takes the code of the codebook that is nearest to a feature in DIRECTION: it normalises both before it
compares them. transformers' quantiser compares them as they are, which gives other tokens unless every code has length
1; so encoding is done here. Its decoder normalises, as the reference does.

Shapes: B pictures, S pixels a side, T tokens of a picture in row-major order, E channels of a code, K codes.
"""

from __future__ import annotations

import hashlib

import torch
from torch.nn import functional


def nearest_codes(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The codes of greatest cosine to each feature, compared in fp32.

    Args:
        features: (B, E, h, w) before quantisation.
        codebook: (K, E), of any length.

    Returns:
        (B, h * w) int64.
    """
    directions = functional.normalize(features.float().flatten(2).transpose(1, 2), dim=-1)
    return (directions @ functional.normalize(codebook.float(), dim=-1).T).argmax(-1)


@torch.no_grad()
def encode_pictures(vqmodel, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] to tokens (B, T), in the precision of the autoencoder's weights."""
    weight = vqmodel.quant_conv.weight
    with torch.autocast(pixels.device.type, enabled=False):
        features = vqmodel.quant_conv(vqmodel.encoder(pixels.to(weight.device, weight.dtype)))
        return nearest_codes(features, vqmodel.quantize.embedding.weight)


@torch.no_grad()
def decode_pictures(vqmodel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, T) to pixels (B, 3, S, S) in fp32, about [-1, 1]."""
    with torch.autocast(tokens.device.type, enabled=False):
        return vqmodel.decode(tokens).float()


def fingerprint(vqmodel) -> str:
    """A name for what decides the tokens of a picture: encoder and codebook, whatever precision they are held in."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(vqmodel.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.", "quantize.")):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()
