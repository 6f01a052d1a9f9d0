"""Limits of requests, and the messages when they are exceeded."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
from gradio.data_classes import ImageData
from gradio.exceptions import InvalidPathError
from PIL import Image

from uniedit_hf.images import DECODE_ERRORS, FORMATS, is_animation, open_image

from .request_examples import StoredExample


def refusal(message: str, title: str) -> gr.Error:
    """An error shown as a toast; visitors' errors are not logged."""
    return gr.Error(message, title=title, print_exception=False)


@dataclass(frozen=True)
class Limits:
    """Limits of one user.

    Args:
        megapixels: Megapixels of an image.
        upload_megabytes: Megabytes of a file.
        characters: Characters of a text.
        waiting: Requests in the queue.
        seconds: For one request.
        keep_seconds: How long uploaded and drawn files stay at most.
    """

    megapixels: int = 25
    upload_megabytes: int = 20
    characters: int = 2000
    waiting: int = 20
    seconds: int = 180
    keep_seconds: int = 600

    def check_text(self, text: str, what: str) -> str:
        """The text without spaces around it.

        Raises:
            gr.Error: If there is none or too much.
        """
        if not text or not text.strip():
            raise refusal(f"Please write {what} first.", title="Something is missing")
        if len(text) > self.characters:
            raise refusal(
                f"This text has {len(text):,} characters; up to {self.characters:,} are read. Please shorten it.",
                title="Too long",
            )
        return text.strip()

    def open_picture(self, path: str) -> Image.Image:
        """An uploaded image, upright and in RGB.

        Raises:
            gr.Error: If it is not an image, too large, an animation or damaged.
        """
        most = f"up to {self.megapixels} megapixels are read. Please save it smaller."
        try:
            with Image.open(path, formats=FORMATS) as picture:  # the header alone
                pixels = picture.width * picture.height
                if pixels > self.megapixels * 1e6:
                    raise refusal(f"This image has {pixels / 1e6:,.0f} megapixels; {most}", title="Too large")
                if is_animation(picture):
                    raise refusal(
                        "This is an animation. Please save one of its frames as PNG or JPEG and upload that.",
                        title="One image, please",
                    )
            return open_image(path)
        except gr.Error:  # ours, which is a ValueError as well
            raise
        except Image.DecompressionBombError as error:
            raise refusal(f"This image is far too large; {most}", title="Too large") from error
        except DECODE_ERRORS as error:
            raise refusal(
                "This file is damaged, or not an image that can be read here. Please upload a PNG, JPEG or WebP file.",
                title="Not an image",
            ) from error


class Page(gr.Blocks):
    """gr.Blocks, which refuses files that were not uploaded, but in a user's words and without the server's paths."""

    async def preprocess_data(self, *args, **options):
        try:
            return await super().preprocess_data(*args, **options)
        except InvalidPathError as error:
            raise refusal(
                "Only an image that was uploaded here can be read. Please upload it.", title="Not an image"
            ) from error


def number(place: gr.Slider | gr.Number) -> gr.Slider | gr.Number:
    """A slider or number that refuses what is not a number of its range in a user's words, and with its name.

    0 means the models' own value where a slider begins at 1. An empty seed draws a new one.
    """
    optional = isinstance(place, gr.Number)

    def preprocess(payload: float | None) -> float | None:
        if payload is None and optional:
            return None
        if not isinstance(payload, int | float) or isinstance(payload, bool):
            raise refusal(f"{place.label} is {_shown(payload)}: {_range(place)}", title="Not a number")
        if payload != 0 and not place.minimum <= payload <= (place.maximum or float("inf")):
            raise refusal(f"{place.label} is {payload}: {_range(place)}", title="Out of range")
        return payload

    place.preprocess = preprocess
    return place


def _shown(payload) -> str:
    return "empty" if payload is None else f"{str(payload)[:40]!r}"


def _range(place: gr.Slider | gr.Number) -> str:
    most = "" if place.maximum is None else f" to {place.maximum}"
    return f"please use a number from {place.minimum}{most}."


def upload(limits: Limits, stored: StoredExample, **options) -> gr.Image:
    """A place to upload an image within limits, with the stored example's image; `options` are those of gr.Image.

    The image is opened here and not by gr.Image, which would decode one of any size and answer with Pillow's errors.
    A subclass would do as well, but Gradio writes a file of types beside the module of every subclass.
    """
    place = gr.Image(str(stored.example.picture), type="pil", format="png", sources=["upload", "clipboard"], **options)

    def preprocess(payload: ImageData | None) -> Image.Image | None:
        if payload is None:
            return None
        if payload.path is None:
            raise refusal("Please upload the image as a file.", title="Not an image")
        return limits.open_picture(payload.path)

    place.preprocess = preprocess
    return place
