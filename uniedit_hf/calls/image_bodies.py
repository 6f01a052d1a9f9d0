"""Parses the reply body of an image API, in all forms in which servers send an image with status 200."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from uniedit_hf.calls.chat_bodies import FORMAT, ErrorBody, error_in, parsed_body
from uniedit_hf.calls.messages import PassingFailure


LISTS = ("data", "images", "output")
FIELDS = ("b64_json", "b64", "base64", "image_base64", "image", "image_url", "url")


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
    tokens = dict(zip(("tokens_in", "tokens_out"), _tokens(made.get("usage")), strict=True))
    entries = next((made[name] for name in LISTS if name in made), [made])
    entries = entries if isinstance(entries, list) else [entries]
    if not entries:
        return ImageBody(refusal="the reply contains no image", **tokens)
    value = _value(entries[0])
    if value and re.match(r"https?://", value, re.IGNORECASE):
        return ImageBody(url=value, **tokens)
    try:
        return ImageBody(decoded_image(value) if value else None, **tokens)
    except ValueError:
        return ImageBody(**tokens)


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


def _tokens(usage: Any) -> tuple[int, int]:
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
    return tuple(count if isinstance(count, int) else 0 for count in counts)
