"""Prepares images for BAGEL's two encoders: sizes, pixels, patches; and converts pixels back to images.

An image has two views. The ViT, for understanding, reads patches of `vit_stride` x `vit_stride` pixels. The VAE, for
drawing, reads pixels; its latents become one token per `vae_stride` x `vae_stride` pixels.

Shapes: H, W pixels of a prepared image; R, C its rows and columns of tokens; p the side of a ViT patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from uniedit_hf.images import ImageError, open_image, pixels_to_pil


# 14 * 14 * 9 * 1024, the reference's limit while it fits a size.
FIT_PIXELS = 1_806_336


def fit_size(width: int, height: int, longest_edge: int, shortest_edge: int, stride: int) -> tuple[int, int]:
    """The size to which the reference resizes an image: multiples of `stride`, the aspect ratio nearly kept.

    The image shrinks until its longer side is at most `longest_edge`, then grows until its shorter side is at least
    `shortest_edge`; if both are impossible, the longer side has priority. Two details of the reference are kept,
    because the released weights were trained with such sizes: sides are rounded after every step, half to even, and an
    intermediate
    size of more than `FIT_PIXELS` is scaled by the ratio of the pixels, not by its square root. With `longest_edge` up
    to 1344 this concerns only narrow images, which the next step shrinks anyway.

    Args:
        width: Pixels, at least 1.
        height: Pixels, at least 1.
        longest_edge: Maximum side of the result; a multiple of `stride`.
        shortest_edge: Minimum side of the result, unless the longer side would exceed `longest_edge`.
        stride: Both sides become multiples of this, at least once.

    Returns:
        `(width, height)`.

    Source: BAGEL's image transform, as tabled in the test fixture `resize.json`.
    """
    scale = max(min(longest_edge / max(width, height), 1.0), shortest_edge / min(width, height))
    size = _scaled((width, height), scale, stride)
    pixels = size[0] * size[1]
    if pixels > FIT_PIXELS:
        size = _scaled(size, FIT_PIXELS / pixels, stride)
    if max(size) > longest_edge:
        size = _scaled(size, longest_edge / max(size), stride)
    return size


def _scaled(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    width, height = (max(stride, round(round(side * scale) / stride) * stride) for side in size)
    return width, height


class BagelImageProcessorKwargs(TypedDict, total=False):
    """The settings that `from_pretrained` may override."""

    vae_size: dict[str, int]
    vit_size: dict[str, int]
    vae_stride: int
    vit_stride: int
    latent_channels: int
    image_mean: list[float]
    image_std: list[float]
    do_convert_rgb: bool
    do_resize: bool
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool


class BagelImageProcessor(BaseImageProcessor):
    """Sizes and pixels of both views of an image, with only Pillow and torch. Defaults: the released 7B model.

    Args:
        vae_size: `{"longest_edge", "shortest_edge"}` in pixels of the VAE view.
        vit_size: The same of the ViT view. The reference edits with 980 but tunes for editing with 518:
            `from_pretrained(..., vit_size={"longest_edge": 518, "shortest_edge": 224})`.
        vae_stride: Pixels along the side of a latent token: 8 times the model's `latent_patch_size`.
        vit_stride: Pixels along the side of a ViT patch.
        latent_channels: Channels of the VAE's latents, so that noise can be drawn before the model is called.
        image_mean: Mean of each channel, subtracted from values in [0, 1].
        image_std: Standard deviation of each channel, the divisor; if both are 0.5, pixels are in [-1, 1].
        do_convert_rgb: Must stay true, because both views have three channels.
        do_resize: Whether to resize an image; without it both sides must be multiples of the stride.
        do_rescale: Whether to multiply values of 0 to 255 by `rescale_factor`; turn off for images in [0, 1].
        rescale_factor: See `do_rescale`.
        do_normalize: Whether to apply mean and standard deviation.

    Raises:
        ValueError: If images are not converted to RGB, a size or stride is not a positive whole number, or a
            longest edge is less than the shortest edge or not a multiple of its stride.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = BagelImageProcessorKwargs

    def __init__(
        self,
        vae_size: dict[str, int] | None = None,
        vit_size: dict[str, int] | None = None,
        vae_stride: int = 16,
        vit_stride: int = 14,
        latent_channels: int = 16,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        do_convert_rgb: bool = True,
        do_resize: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vae_size = dict(vae_size or {"longest_edge": 1024, "shortest_edge": 512})
        self.vit_size = dict(vit_size or {"longest_edge": 980, "shortest_edge": 224})
        self.vae_stride = vae_stride
        self.vit_stride = vit_stride
        self.latent_channels = latent_channels
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.do_convert_rgb = do_convert_rgb
        self.do_resize = do_resize
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        if not do_convert_rgb:
            raise ValueError("do_convert_rgb is off, but both views take three channels: leave it on.")
        for view in ("vae", "vit"):
            _check_settings(view, *self._settings(view))

    # --- sizes --------------------------------------------------------------------------------------------------

    def resized_size(self, width: int, height: int, view: str) -> tuple[int, int]:
        """`(width, height)` of a view of an image of this size, see `fit_size`.

        Raises:
            ValueError: If the view is unknown or a side is less than 1.
        """
        if width < 1 or height < 1:
            raise ValueError(f"The image is {width} x {height} pixels, but must be at least 1 x 1: leave it out.")
        size, stride = self._settings(view)
        return fit_size(width, height, size["longest_edge"], size["shortest_edge"], stride)

    def tokens(self, width: int, height: int, view: str, resize: bool = True) -> int:
        """Number of tokens of a view of an image, without the two markers around them.

        Args:
            width: Pixels.
            height: Pixels.
            view: `"vit"` or `"vae"`.
            resize: Whether the size is that of the original image, before resizing, or of prepared pixels.

        Raises:
            ValueError: If the view is unknown, or prepared pixels are not whole tokens.
        """
        if resize:
            width, height = self.resized_size(width, height, view)
        _, stride = self._settings(view)
        _check_divisible(width, height, stride)
        return (width // stride) * (height // stride)

    # --- pixels -------------------------------------------------------------------------------------------------

    def fit(self, image: Any, view: str, *, name: str = "image") -> Image.Image:
        """An image as RGB, resized to the size of a view with Pillow's antialiased bicubic filter.

        When BAGEL reads an image to answer or edit, the reference first fits it to the VAE, even if the VAE does not
        see it, and passes that image to both encoders; during training, each view is made from the original. So
        for inference the ViT's pixels are `prepare(fit(image, "vae"), "vit")`; fitting twice to the VAE changes
        nothing.

        Args:
            image: Anything that `uniedit_hf.images.open_image` takes.
            view: `"vit"` or `"vae"`.
            name: Name of the image in errors.

        Raises:
            ImageError: If the image cannot be used.
            ValueError: If the view is unknown.
        """
        opened = open_image(image, name=name)
        return opened.resize(self.resized_size(*opened.size, view), Image.Resampling.BICUBIC)

    def prepare(self, image: Any, view: str, *, name: str = "image") -> torch.FloatTensor:
        """Pixels (3, H, W) in fp32, in [-1, 1], of a view of an image; errors are those of `fit`.

        Args:
            image: As in `fit`, or an array or tensor (3, H, W) or (H, W, 3): integers from 0 to 255, or with
                `do_rescale` off floating point in [0, 1].
            view: `"vit"` or `"vae"`.
            name: Name of the image in errors.
        """
        if is_floating(image):
            pixels = self._fit_values(image, view, name)
        else:
            image = image if not _is_array(image) else Image.fromarray(_rows_first(image, name).numpy())
            fitted = self.fit(image, view, name=name) if self.do_resize else self._as_it_is(image, view, name)
            pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous().float()
        if self.do_rescale:  # the reference divides by 255
            pixels = pixels / 255 if self.rescale_factor == 1 / 255 else pixels * self.rescale_factor
        if not self.do_normalize:
            return pixels
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return (pixels - mean) / std

    def _as_it_is(self, image: Any, view: str, name: str) -> Image.Image:
        opened = open_image(image, name=name)
        _check_divisible(*opened.size, self._settings(view)[1])
        return opened

    def _fit_values(self, image: Any, view: str, name: str) -> torch.Tensor:
        """An image in floating point (3, H, W) at the size of a view."""
        pixels = _rows_first(image, name).permute(2, 0, 1).float()
        if self.do_rescale and pixels.max() <= 1:
            raise ImageError(
                f"{name} contains floating point up to {float(pixels.max()):g}, which do_rescale would make black: "
                "set "
                "do_rescale=False for images in [0, 1]."
            )
        height, width = pixels.shape[1:]
        if not self.do_resize:
            _check_divisible(width, height, self._settings(view)[1])
            return pixels
        size = self.resized_size(width, height, view)[::-1]
        if size == (height, width):
            return pixels
        fitted = torch.nn.functional.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
        return fitted.clamp(0, 255 if self.do_rescale else 1)

    def preprocess(
        self, images: Any, view: str = "vit", return_tensors: str | None = "pt", **settings
    ) -> BatchFeature:
        """One view of one or several images, as users of `AutoImageProcessor` expect; also used when the processor is
        called.

        Args:
            images: An image, a list of images or a batch (B, 3, H, W), each as in `prepare`.
            view: `"vit"` or `"vae"`.
            return_tensors: `"pt"` or `None`; either way torch tensors.
            settings: Settings of the processor for this call.

        Returns:
            `pixel_values`: a list of (3, H, W), since sizes differ.

        Raises:
            ImageError: If an image cannot be used.
            ValueError: If the view is unknown, or other tensors are requested.
            TypeError: If there is no such setting.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}, but pixels come as torch tensors: use 'pt'.")
        processor = self.with_settings(**settings)
        if _is_array(images) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            images = [images]
        return BatchFeature(
            {"pixel_values": [processor.prepare(image, view, name=f"image {i}") for i, image in enumerate(images)]}
        )

    def with_settings(self, **settings) -> BagelImageProcessor:
        """A copy with some settings changed, or this one if there are none.

        Raises:
            TypeError: If there is no such setting.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        if unknown := sorted(set(settings) - set(BagelImageProcessorKwargs.__annotations__)):
            known = ", ".join(BagelImageProcessorKwargs.__annotations__)
            raise TypeError(f"BagelImageProcessor has no setting {', '.join(unknown)}: it has {known}.")
        return type(self)(**self.to_dict() | settings) if settings else self

    def patchify_vit(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, H, W) to (R*C, p*p*3), row by row; within a patch by row, column, channel, the channel fastest.

        Raises:
            ValueError: If a side is not a multiple of the patch.
        """
        channels, height, width = pixels.shape
        patch = self.vit_stride
        _check_divisible(width, height, patch)
        patches = pixels.view(channels, height // patch, patch, width // patch, patch).permute(1, 3, 2, 4, 0)
        return patches.reshape(-1, patch * patch * channels)

    @staticmethod
    def to_pil(pixels: torch.Tensor | Sequence[torch.Tensor]) -> Image.Image | list[Image.Image]:
        """Converts pixels in [-1, 1] to an image, or a list or batch of them to a list. Values are rounded and
        clamped.

        Raises:
            ValueError: If a value is NaN or infinite, as from a model that has overflowed or diverged.
        """
        if not isinstance(pixels, torch.Tensor) or pixels.ndim == 4:
            return [BagelImageProcessor.to_pil(image) for image in pixels]
        return pixels_to_pil(pixels)

    def _settings(self, view: str) -> tuple[dict[str, int], int]:
        """Edges and stride of a view."""
        if view == "vit":
            return self.vit_size, self.vit_stride
        if view == "vae":
            return self.vae_size, self.vae_stride
        raise ValueError(f"The view is {view!r}, but BAGEL has the views 'vit' and 'vae': name one of them.")


def _is_array(image: Any) -> bool:
    return isinstance(image, (np.ndarray, torch.Tensor))


def is_floating(image: Any) -> bool:
    """Whether an image is an array or tensor in floating point."""
    if isinstance(image, np.ndarray):
        return np.issubdtype(image.dtype, np.floating)
    return isinstance(image, torch.Tensor) and image.is_floating_point()


def _rows_first(image: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """An array with three channels, first or last, as (H, W, 3)."""
    # An array may be read-only, as those of Pillow are; torch takes only writable ones without a warning.
    values = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image
    if values.ndim != 3 or 3 not in (values.shape[0], values.shape[2]):
        raise ImageError(
            f"{name} has the shape {tuple(values.shape)}, but an array needs three channels, (3, H, W) or (H, W, 3): "
            "convert it to RGB."
        )
    return (values if values.shape[2] == 3 else values.permute(1, 2, 0)).contiguous().cpu()


def _check_settings(view: str, size: dict[str, int], stride: int) -> None:
    edges = {f"{view}_size[{edge!r}]": size.get(edge) for edge in ("longest_edge", "shortest_edge")}
    for option, value in {f"{view}_stride": stride, **edges}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} is {value!r}, but must be a whole number of pixels, at least 1: set it.")
    longest, shortest = size["longest_edge"], size["shortest_edge"]
    if longest < shortest or longest % stride:
        raise ValueError(
            f"{view}_size is {size}, but its longest_edge must be at least its shortest_edge and a multiple of "
            f"{view}_stride, {stride}: for instance {max(stride, round(max(longest, shortest) / stride) * stride)}."
        )


def _check_divisible(width: int, height: int, stride: int) -> None:
    if width % stride or height % stride:
        raise ValueError(
            f"The image is {width} x {height} pixels, but both sides must be multiples of {stride}: resize it first, "
            "as prepare() does."
        )
