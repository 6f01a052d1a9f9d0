"""Requests to models, their replies, and the ways in which a call can fail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict

from uniedit_hf.images import image_size, open_image


# Below this many bytes, processing an image takes less time than passing it to another thread.
SMALL = 32 * 1024
Value = TypeVar("Value")


class EncodedImage:
    """An encoded image with cached properties, which are computed on first use."""

    def __init__(self, data: bytes):
        self.data = data

    def __eq__(self, other) -> bool:
        return isinstance(other, EncodedImage) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height), upright. Raises `ImageError`."""
        return image_size(self.data)

    def pixels(self) -> Image.Image:
        """The image decoded, upright, RGB. Raises `ImageError`."""
        image = open_image(self.data)
        self.__dict__.setdefault("size", image.size)  # otherwise the header would be read again
        return image

    def png(self, longest_side: int | None = None) -> bytes:
        """The image as PNG, as training sees it: upright, RGB, on white, and scaled down if a side is longer than
        `longest_side` pixels.
        """
        fits = longest_side is None or max(self.size) <= longest_side
        if fits and _is_plain_png(self.data):
            return self.data
        image = self.pixels()
        if longest_side is not None and max(image.size) > longest_side:
            image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        return encoded(image)


def _is_plain_png(data: bytes) -> bool:
    """Whether these bytes are a PNG in 8-bit RGB without transparency, orientation or further frames."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] != b"\x08\x02":
        return False
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if kind in (b"tRNS", b"eXIf", b"acTL"):
            return False
        place += length + 12
    return True


def data_url(data: bytes, kind: str = "png") -> str:
    """An encoded image as a data URL, for chat models and HTML pages."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


async def off_loop(work: Callable[..., Value], *images: EncodedImage) -> Value:
    """`work(*images)`, in a thread if the images are large, so that calls in flight do not wait for it."""
    if sum(len(image.data) for image in images) <= SMALL:
        return work(*images)
    return await asyncio.to_thread(work, *images)


def encoded(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Answer(BaseModel):
    """Base class of structured answers: all fields required and no others, as strict endpoints demand."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ChatRequest:
    """A question to a chat model.

    Args:
        system: The system prompt, shared by many questions.
        text: This question.
        answer: The form of the answer; `None` for plain text.
        images: The images, in order.
        attempt: Number of earlier attempts whose answers had the wrong form.
        text_first: Whether the text comes before the images.
    """

    system: str
    text: str
    answer: type[Answer] | None
    images: tuple[EncodedImage, ...] = ()
    attempt: int = 0
    text_first: bool = False

    @property
    def content(self) -> tuple[str, ...]:
        """The content that determines the reply."""
        form = self.answer.__name__ if self.answer else ("text first" if self.text_first else "text")
        return ("chat", self.system, self.text, form, str(self.attempt), *(each.sha256 for each in self.images))


@dataclass(frozen=True)
class EditRequest:
    """An image to be edited.

    Args:
        prompt: The instruction.
        image: The source.
        size: (width, height) of the result in pixels.
        seed: Seed for editors that accept one.
    """

    prompt: str
    image: EncodedImage
    size: tuple[int, int]
    seed: int

    @property
    def content(self) -> tuple[str, ...]:
        """The content that determines the reply."""
        return ("edit", self.prompt, str(self.size), str(self.seed), self.image.sha256)


@dataclass(frozen=True)
class Reply:
    """A reply: a text, an image, or a refusal, which counts as data.

    Args:
        model: The model that replied, as the server names it.
        text: The text of a chat model; for an editor, a reply body whose image could not be read yet, which is stored
            because it has been paid for.
        image: The image of an editor.
        refusal: The reason why there is neither.
        tokens_in: Input tokens.
        tokens_out: Output tokens.
        cut: Whether the text was cut at the token limit; not stored in the cache.
    """

    model: str
    text: str | None = None
    image: EncodedImage | None = field(default=None, repr=False)
    refusal: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


class PassingFailure(Exception):
    """A call failed temporarily: the server was busy or slow, or the connection broke.

    Args:
        message: The failure.
        wait: Seconds that the server asks to wait.
        reached: Whether the server replied at all.
        connected: Whether there was a connection; without one the server is probably not running.
    """

    def __init__(self, message: str, wait: float = 0.0, reached: bool = True, connected: bool = True):
        super().__init__(message)
        self.wait, self.reached, self.connected = wait, reached, connected


class RowFailure(Exception):
    """A call failed because of its content; other rows may succeed."""


class BackendError(ValueError):
    """No call can succeed (wrong key, unknown model, no credit); the message has the remedy."""


class BackendDown(BackendError):
    """Consecutive calls fail: the server is down, busy or broken."""


def request_key(parameters: str, request: ChatRequest | EditRequest) -> bytes:
    """32 bytes that depend only on model, parameters, prompt and images."""
    digest = hashlib.sha256()
    for part in (parameters, *request.content):
        encoded_part = part.encode(errors="surrogatepass")
        digest.update(len(encoded_part).to_bytes(8, "big") + encoded_part)
    return digest.digest()
