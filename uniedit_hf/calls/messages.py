"""What is asked of a model, what it replies, and the ways in which a call can fail."""

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


# Bytes below which working on an image takes less time than handing it to another thread.
SMALL = 32 * 1024
Value = TypeVar("Value")


class EncodedImage:
    """An encoded image with what is known about it; nothing is computed before it is asked for."""

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
        self.__dict__.setdefault("size", image.size)  # or the header would be read once more
        return image

    def png(self, longest_side: int | None = None) -> bytes:
        """The image as PNG as training sees it: upright, RGB, on white, and made smaller if a side is longer than
        `longest_side` pixels."""
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
    """An encoded image as text, as chat models and pages take it."""
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
    """Base of what chat models fill in: all fields required and no others, as strict endpoints want it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ChatRequest:
    """A question to a chat model.

    Args:
        system: What is the same for many questions.
        text: This question.
        answer: The form of the answer; `None` for a text.
        images: What the model sees, in order.
        attempt: Counts the times the same was asked because the answer had another form.
        text_first: Whether the question stands before the images.
    """

    system: str
    text: str
    answer: type[Answer] | None
    images: tuple[EncodedImage, ...] = ()
    attempt: int = 0
    text_first: bool = False

    @property
    def content(self) -> tuple[str, ...]:
        """What decides the reply."""
        form = self.answer.__name__ if self.answer else ("text first" if self.text_first else "text")
        return ("chat", self.system, self.text, form, str(self.attempt), *(each.sha256 for each in self.images))


@dataclass(frozen=True)
class EditRequest:
    """An image to be edited.

    Args:
        prompt: What to do.
        image: What to do it to.
        size: (width, height) in pixels that the result should have.
        seed: Decides what the editor draws, where it can be told.
    """

    prompt: str
    image: EncodedImage
    size: tuple[int, int]
    seed: int

    @property
    def content(self) -> tuple[str, ...]:
        """What decides the reply."""
        return ("edit", self.prompt, str(self.size), str(self.seed), self.image.sha256)


@dataclass(frozen=True)
class Reply:
    """What came back: a text, an image, or a refusal, which is data like any other.

    Args:
        model: The model that replied, as it names itself.
        text: The text of a chat model; of an editor the body of a reply whose image could not be read yet, which is
            kept because it has been paid for.
        image: The image, of an editor.
        refusal: Why there is neither.
        tokens_in: Tokens that were read.
        tokens_out: Tokens that were written.
        cut: Whether the text ends at the limit of tokens; not kept in the cache.
    """

    model: str
    text: str | None = None
    image: EncodedImage | None = field(default=None, repr=False)
    refusal: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


class PassingFailure(Exception):
    """A call failed in a way that may pass: busy, slow, cut off.

    Args:
        message: What was found.
        wait: Seconds that the server asks to wait.
        reached: Whether the server replied at all.
        connected: Whether there was a connection; without one the server is probably not running.
    """

    def __init__(self, message: str, wait: float = 0.0, reached: bool = True, connected: bool = True):
        super().__init__(message)
        self.wait, self.reached, self.connected = wait, reached, connected


class RowFailure(Exception):
    """A call failed because of what was asked; another row may well succeed."""


class BackendError(ValueError):
    """No call can succeed: a wrong key, an unknown model, no credit. One sentence with the remedy."""


class BackendDown(BackendError):
    """Calls fail one after another: a server that is down, busy or broken."""


def request_key(parameters: str, request: ChatRequest | EditRequest) -> bytes:
    """32 bytes that depend on model, parameters, prompt and images, and on nothing else."""
    digest = hashlib.sha256()
    for part in (parameters, *request.content):
        encoded_part = part.encode(errors="surrogatepass")
        digest.update(len(encoded_part).to_bytes(8, "big") + encoded_part)
    return digest.digest()
