"""Stores the outputs of BAGEL's frozen encoders with a data set, so that training does not run them.

A drawing view is stored as mean and standard deviation of the posterior, so that every epoch still draws its own
latents; an understanding view as the encoder's features before the connector, which is trained. Both are safetensors
in a binary column, with the fingerprint of the encoder.

Shapes: (2 Z, h/8, w/8) moments of Z channels, (rows, columns, vision size) features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from datasets import Dataset, Features, Image, Value
from safetensors import SafetensorError
from safetensors.torch import load, save

from uniedit_hf.compat import content_id
from uniedit_hf.images import ImageError
from uniedit_hf.segments import StoredView


NAME = "view"
COLUMNS = {"vae": "latents", "vit": "features"}
IMAGES = ("source_image", "target_image")


def pack_view(tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    """Serializes a tensor for storage."""
    return save({NAME: tensor.to("cpu", dtype).contiguous()})


def unpack_view(stored: StoredView, name: str) -> torch.Tensor:
    """The tensor of a stored view.

    Raises:
        ImageError: If the bytes are not such a tensor.
    """
    try:
        return load(stored.data)[NAME]
    except (SafetensorError, KeyError) as error:
        raise ImageError(
            f"{name} has a stored view that is not readable ({error}): store it again with `uniedit dataset latents`, "
            "or remove its columns."
        ) from error


def fingerprint(module: torch.nn.Module, prefix: str = "") -> str:
    """A fingerprint of the weights that decide a view, from their values.

    Args:
        module: The autoencoder or the understanding encoder, unsharded on this device.
        prefix: Prefix of the parameters that count.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(module.named_parameters()):
        if name.startswith(prefix):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()


def store_views(
    dataset: Dataset, model, processor, dtype: torch.dtype = torch.float32, understanding: bool = True
) -> Dataset:
    """Runs both encoders once over all images and stores their outputs with the data.

    Args:
        dataset: With the columns `source_image` and `target_image`, or one of them.
        model: A `BagelForConditionalGeneration`.
        processor: Its `BagelProcessor`, with the image sizes of training.
        dtype: dtype of the stored tensors; anything but fp32 rounds.
        understanding: Whether to store the features of sources, which are larger than the images themselves.

    Returns:
        The same rows with `source_latents`, `target_latents` and `latents_encoder`, and with `source_features` and
        `features_encoder`.

    Raises:
        ImageError: If an image cannot be read.
        ValueError: If there is no image to encode.
    """
    images = [name for name in IMAGES if name in dataset.column_names]
    if not images:
        raise ValueError(f"The data has the columns {dataset.column_names}, but no {' or '.join(IMAGES)}.")
    wanted = [(name, "vae") for name in images]
    wanted += [("source_image", "vit")] if understanding and "source_image" in images else []
    made_by = model.view_encoders
    columns = {column_of(name, view): (name, view) for name, view in wanted}
    encoders = {f"{COLUMNS[view]}_encoder": made_by[view] for _, view in wanted}
    # a column of paths, as from a CSV, becomes one of images
    features = dataset.features | {name: Image() for name in images}
    features |= {name: Value("binary") for name in columns}
    features = Features(features | {name: Value("string") for name in encoders})
    undecoded = Features(features | {name: Image(decode=False) for name in images})
    stored = dataset
    for name in images:
        stored = stored.cast_column(name, Image(decode=False))

    def encode(row: dict, number: int) -> dict:
        found = {}
        for column, (name, view) in columns.items():
            image = None
            if row[name] is not None:
                pixels = processor.image_processor.prepare(row[name], view, name=f"{name} of row {number}")
                image = pack_view(model.encode_view(pixels, view), dtype)
            found[column] = image
        return found | encoders

    stored = stored.map(
        encode, with_indices=True, features=undecoded, desc="latents and features",
        new_fingerprint=_name_of(content_id(dataset), dtype, processor, encoders),
    )  # fmt: skip
    return stored.cast(features)


def with_stored(
    encoder: torch.nn.Module,
    patches: torch.Tensor,
    grids: Sequence[Sequence[int]],
    index: torch.Tensor,
    features: torch.Tensor,
    is_stored: Sequence[bool],
) -> torch.Tensor:
    """Features (V, vision size) of all understanding views in order: those that were stored, and the others encoded.

    Args:
        encoder: The model's function that encodes patches.
        patches: Patches of the views that were not stored.
        grids: Rows and columns of all views.
        index: (V,) indices of all views in the position table.
        features: (stored tokens, vision size).
        is_stored: Whether each view is stored.
    """
    if all(is_stored):
        return features
    known = torch.cat([torch.full((rows * columns,), each) for (rows, columns), each in zip(grids, is_stored)])
    own, known = ((~known).nonzero()[:, 0].to(index.device), known.nonzero()[:, 0].to(index.device))
    others = [grid for grid, each in zip(grids, is_stored) if not each]
    encoded = encoder(patches, others, index.index_select(0, own))
    return torch.cat([encoded.to(features.dtype), features]).index_select(0, torch.cat([own, known]).argsort())


def column_of(image: str, view: str) -> str:
    """The column of a stored view: `source_latents` of `source_image`."""
    return image.replace("image", COLUMNS[view])


def check_size(stored: torch.Tensor, view: str, expected: int, config_size: int, name: str) -> None:
    """Checks that a stored view has as many tokens as its image has at the sizes of this run.

    Args:
        stored: Moments or features.
        view: `"vae"` or `"vit"`.
        expected: Tokens of the image.
        config_size: Tokens that a stored row and column give: the side of a latent token's square, or 1.
        name: Name of the image in errors.

    Raises:
        ImageError: If they differ.
    """
    rows, columns = stored.shape[-2:] if view == "vae" else stored.shape[:2]
    found = (rows // config_size) * (columns // config_size)
    if found != expected:
        raise ImageError(
            f"{name} has {COLUMNS[view]} of {found} tokens stored, but at the sizes of this run it has {expected}: "
            "store them with the same vit_longest_edge and processor, or remove the columns."
        )


def _name_of(before: str, dtype: torch.dtype, processor, encoders: dict[str, str]) -> str:
    settings = (before, str(dtype), processor.image_processor.to_json_string(), sorted(encoders.items()))
    return hashlib.blake2b(repr(settings).encode(), digest_size=8).hexdigest()
