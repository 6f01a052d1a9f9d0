"""Parses the reply body of an image API, in all forms in which servers send an image with status 200."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from uniedit_hf.calls.chat_bodies import FORMAT, ErrorBody, error_in, parsed_body, token_counts
from uniedit_hf.calls.messages import PassingFailure


LISTS = ("data", "images", "output")
FIELDS = ("b64_json", "b64", "base64", "image_base64", "image", "image_url", "url")
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
ADDRESS_FIELDS = ("url", "image_url", "image_urls", "image", "sample", "uri")
IN_MARKDOWN = re.compile(r"!\[[^\]]*\]\(\s*<?([^\s)>]+)")
DEEPEST = 10
# First bytes of PNG, JPEG, GIF, WebP, BMP, TIFF; AVIF and HEIC have theirs from the fifth.
IMAGE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class ImageBody:
    """The reply of an image API. Without image, URL and refusal its form is unknown.

    Args:
        image: The encoded image.
        url: URL of the image, if the reply contains one instead.
        refusal: The reason why there is no image.
        tokens_in: Input tokens.
        tokens_out: Output tokens.
    """

    image: bytes | None = None
    url: str | None = None
    refusal: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


def read_image(body: str) -> ImageBody:
    """The image in a body: JSON, perhaps after comment lines of a gateway, or server-sent events, with the image as
    base64, data URL or URL.

    Raises:
        PassingFailure: If the body is truncated, or is not JSON.
    """
    made = parsed_body(body)
    if not isinstance(made, dict):
        raise PassingFailure(FORMAT)
    if found := error_in(made):
        raise ErrorBody(*found)
    counts = token_counts(made.get("usage"), "input_tokens", "output_tokens")
    tokens = dict(zip(("tokens_in", "tokens_out"), counts, strict=True))
    entries = next((made[name] for name in LISTS if name in made), [made])
    entries = entries if isinstance(entries, list) else [entries]
    if not entries:
        return ImageBody(refusal="the reply contains no image", **tokens)
    values = [value for entry in entries if (value := _value(entry))]
    for value in (*values[:1], *_elsewhere(made)):
        if ADDRESS.match(value.strip()):
            return ImageBody(url=value.strip(), **tokens)
        try:
            image = decoded_image(value)
        except ValueError:
            continue
        if is_image(image):
            return ImageBody(image, **tokens)
    return ImageBody(**tokens)


def is_image(data: bytes) -> bool:
    """Whether bytes begin as an image does, and not as a page or a text."""
    return data.startswith(IMAGE_BYTES) or data[4:8] == b"ftyp"


def _elsewhere(made: Any, field: str = "", depth: int = DEEPEST) -> Iterator[str]:
    """Texts anywhere in a reply that may be its image: base64 or data URLs, addresses in fields for them, and images
    in Markdown. Servers put images into messages of a chat, results and artifacts.
    """
    if isinstance(made, str):
        if made[:5].lower() == "data:" or len(made) > 64 or field in ADDRESS_FIELDS and ADDRESS.match(made):
            yield made
        yield from IN_MARKDOWN.findall(made)
    elif depth and isinstance(made, (dict, list)):
        pairs = made.items() if isinstance(made, dict) else [(field, each) for each in made]
        for name, value in pairs:
            yield from _elsewhere(value, name, depth - 1)


def decoded_image(text: str) -> bytes:
    """The bytes of a data URL or of base64, also with line breaks, without padding, or in its URL-safe alphabet.

    Raises:
        ValueError: If the text is none of these.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma:
            raise ValueError("a data URL without data")
        data = unquote_to_bytes(text)
        if not head.lower().endswith(";base64"):
            return data
        text = data.decode("ascii", "replace")
    text = re.sub(r"^[\w/;+.-]{0,40}base64,", "", text.replace("\\n", "").replace("\\r", ""))
    letters = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    if not letters or not re.fullmatch(r"[A-Za-z0-9+/]+", letters):
        raise ValueError("not base64")
    return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)


def _value(entry: Any) -> str | None:
    """The first value of an entry that can be an image."""
    if isinstance(entry, dict):
        entry = next((entry[name] for name in FIELDS if entry.get(name)), None)
    if isinstance(entry, dict):
        entry = next((entry[name] for name in FIELDS if entry.get(name)), None)
    return entry if isinstance(entry, str) and entry else None
