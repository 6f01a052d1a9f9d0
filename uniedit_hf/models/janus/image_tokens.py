"""Converts images to the tokens of Janus-Pro's VQ autoencoder and back.

The reference takes the code of the codebook that is nearest to a feature in DIRECTION: it normalizes both before it
compares them. transformers' quantizer compares them without normalization, which gives other tokens unless every code
has length 1; so encoding is done here. Its decoder normalizes, as the reference does.

Shapes: B images, S pixels a side, T tokens of an image in row-major order, E channels of a code, K codes.
"""

from __future__ import annotations

import hashlib

import torch
from accelerate.utils import align_module_device
from datasets import Dataset, Features, Image, List, Value
from torch.nn import functional
from transformers.models.janus.modeling_janus import JanusVQVAE

from uniedit_hf.compat import content_id
from uniedit_hf.models.precision import Fp32Weights


class Fp32ImageTokenizer(Fp32Weights, JanusVQVAE):
    """transformers' VQ autoencoder, which stays in fp32 when the model is cast: in bf16 the same image would give
    other tokens.
    """


IMAGE_COLUMNS = ("source_image", "target_image")


def nearest_codes(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The code with the largest cosine similarity to each feature, compared in fp32.

    Args:
        features: (B, E, h, w) before quantization.
        codebook: (K, E), of any length.

    Returns:
        (B, h * w) int64.
    """
    directions = functional.normalize(features.float().flatten(2).transpose(1, 2), dim=-1)
    return (directions @ functional.normalize(codebook.float(), dim=-1).T).argmax(-1)


@torch.no_grad()
def encode_image_tokens(vqmodel, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] to tokens (B, T), in the precision of the autoencoder's weights."""
    codebook = vqmodel.quantize.embedding
    # accelerate may keep weights elsewhere until their module is called; the codebook is read without a call
    with torch.autocast(pixels.device.type, enabled=False), align_module_device(codebook):
        pixels = pixels.to(codebook.weight.device, vqmodel.quant_conv.weight.dtype)
        return nearest_codes(vqmodel.quant_conv(vqmodel.encoder(pixels)), codebook.weight)


@torch.no_grad()
def decode_image_tokens(vqmodel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, T) to pixels (B, 3, S, S) in fp32, about [-1, 1]."""
    with torch.autocast(tokens.device.type, enabled=False):
        return vqmodel.decode(tokens).float()


def store_image_tokens(dataset: Dataset, model, processor, batch_size: int = 16) -> Dataset:
    """Computes the tokens of all images once and stores them with the data, so that training does not have to.

    Args:
        dataset: With the columns `source_image` and `target_image`, or one of them.
        model: A `JanusForConditionalGeneration`.
        processor: Its `JanusProcessor`.
        batch_size: Number of images encoded at once.

    Returns:
        The same rows with `source_tokens`, `target_tokens` (for existing images) and `image_tokenizer`, the
        fingerprint of the model's tokenizer.

    Raises:
        ImageError: If an image cannot be read.
        ValueError: If there is no image to encode.
    """
    columns = {name: name.replace("image", "tokens") for name in IMAGE_COLUMNS if name in dataset.column_names}
    if not columns:
        raise ValueError(f"The data has the columns {dataset.column_names}, but no {' or '.join(IMAGE_COLUMNS)}.")
    # a column of paths, as from a CSV, becomes one of images
    features = dataset.features | {name: Image() for name in columns}
    features |= {name: List(Value("uint16")) for name in columns.values()}
    features = Features(features | {"image_tokenizer": Value("string")})
    stored = dataset
    for name in columns:
        stored = stored.cast_column(name, Image(decode=False))

    def encode(rows: dict, numbers: list[int]) -> dict:
        tokens = {}
        for name, column in columns.items():
            places = [place for place, image in enumerate(rows[name]) if image is not None]
            sources = [processor.open_source(rows[name][p], f"{name} of row {numbers[p]}") for p in places]
            found = model.encode_images([processor.prepare(each) for each in sources]).tolist() if places else []
            by_place = dict(zip(places, found))
            tokens[column] = [by_place.get(place) for place in range(len(numbers))]
        return tokens | {"image_tokenizer": [model.image_tokenizer] * len(numbers)}

    stored = stored.map(
        encode, with_indices=True, batched=True, batch_size=batch_size, features=_undecoded(features, columns),
        new_fingerprint=f"{content_id(dataset)}-{model.image_tokenizer}", desc="image tokens",
    )  # fmt: skip
    return stored.cast(features)


def _undecoded(features: Features, names) -> Features:
    return Features(features | {name: Image(decode=False) for name in names})


def fingerprint(vqmodel) -> str:
    """A fingerprint of the weights that decide the tokens of an image (encoder and codebook), in any precision."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(vqmodel.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.", "quantize.")):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()
