"""`images.edit` of OpenAI-compatible endpoints."""

from __future__ import annotations

import inspect
import json
import re

import httpx2
import openai
from openai import AsyncOpenAI
from openai.resources.images import AsyncImages

from uniedit_hf.calls.chat_bodies import ErrorBody, error_of
from uniedit_hf.calls.failures import (
    html_failure,
    is_html,
    is_refusal,
    key_for,
    refusal_in_body,
    sorted_failure,
    transport_failure,
    without_key,
)
from uniedit_hf.calls.image_bodies import is_image, read_image
from uniedit_hf.calls.messages import BackendError, EditRequest, EncodedImage, PassingFailure, Reply, RowFailure
from uniedit_hf.calls.openai_chat import check_arguments
from uniedit_hf.synthesis.geometry import nearest_ratio
from uniedit_hf.synthesis.settings import HEADERS, OpenAiEditor


LARGEST_IMAGE = 64 * 2**20  # bytes of a download
EDIT_ARGUMENTS = set(inspect.signature(AsyncImages.edit).parameters) - {"self"}


def _client(name: str, settings: OpenAiEditor) -> tuple[AsyncOpenAI, str]:
    """The client and its key. Retries are done by us, so that they are counted; a local server needs no key."""
    default = None if settings.base_url else "OPENAI_API_KEY"
    key = key_for(f"The backend {name}", settings.api_key_env or default)
    client = AsyncOpenAI(
        api_key=key or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0, organization=""
    )
    return client, key


class OpenAiEditorBackend:
    """`images.edit`. The requested size is the nearest one that the model supports, unless `arguments` set one.

    `ratios` are the aspect ratios of these sizes; empty if the model chooses ("auto").
    """

    SIZES = {"1024x1024": 1.0, "1536x1024": 1.5, "1024x1536": 1 / 1.5}
    OURS = (*HEADERS, "image", "model", "n", "partial_images", "prompt", "response_format", "stream", "timeout")

    def __init__(self, name: str, settings: OpenAiEditor):
        check_arguments(name, settings.arguments, EDIT_ARGUMENTS, self.OURS)
        self.name, self.settings = name, settings
        self.parameters = json.dumps(["openai_images", settings.model, settings.arguments], sort_keys=True)
        self.ratios = _ratios(settings.arguments["size"]) if "size" in settings.arguments else self.SIZES
        self.client, self.key = _client(name, settings)
        self.who, self.answered = f"The backend {name}", False

    async def reply(self, request: EditRequest) -> Reply:
        arguments = self.settings.arguments
        if "size" not in arguments:
            arguments = arguments | {"size": nearest_ratio(request.size, self.SIZES)}
        try:
            made = await self.client.images.with_raw_response.edit(
                model=self.settings.model,
                image=("source.png", request.image.png(), "image/png"),
                prompt=request.prompt,
                **arguments,
            )
        except openai.OpenAIError as error:
            return _refusal_or_raise(error, self.name, self.settings, self.key)
        return self._reply(made.http_response.text)

    def _reply(self, body: str) -> Reply:
        """Parses the reply body. If its image is at a URL or cannot be read, the body itself is stored, because it has
        been paid for.
        """
        if is_html(body):
            raise html_failure(self.who, str(self.client.base_url), 200, self.answered)
        try:
            made = read_image(body)
        except ErrorBody as error:
            return refusal_in_body(self.who, self.settings.model, error, self.key)
        self.answered = True
        return Reply(
            self.settings.model,
            text=body if made.image is None and made.refusal is None else None,
            image=None if made.image is None else EncodedImage(made.image),
            refusal=made.refusal,
            tokens_in=made.tokens_in,
            tokens_out=made.tokens_out,
        )

    async def read(self, body: str) -> EncodedImage | None:
        """The image in a stored reply body, downloaded if it is at a URL; None if it cannot be read.

        Raises:
            PassingFailure: If the download failed.
            BackendError: If the URL's host is neither this server nor in `image_hosts`.
        """
        made = read_image(body)
        if made.url is None:
            return None if made.image is None else EncodedImage(made.image)
        try:
            address, own = httpx2.URL(made.url), httpx2.URL(str(self.client.base_url))
        except httpx2.InvalidURL:
            return None
        if _origin(address) != _origin(own) and address.host not in self.settings.image_hosts:
            raise BackendError(
                f"{self.who} replies with the address of an image on {address.host}: add this host to image_hosts of "
                "the backend, or ask for base64, then run the same command again: the reply is kept."
            )
        return EncodedImage(await _download(address, self.settings.timeout))

    async def close(self) -> None:
        await self.client.close()


def _ratios(size: str) -> dict[str, float]:
    """The aspect ratio of a size such as "1024x1024"."""
    found = re.fullmatch(r"(\d+)x(\d+)", str(size))
    return {str(size): int(found[1]) / int(found[2])} if found else {}


def _origin(address: httpx2.URL) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port or {"http": 80, "https": 443}.get(address.scheme)


async def _download(address: httpx2.URL, timeout: float) -> bytes:
    """The bytes at a URL, fetched without a key and without redirects. Raises `PassingFailure`."""
    data = bytearray()
    try:
        async with httpx2.AsyncClient(timeout=timeout) as client, client.stream("GET", address) as response:
            if response.status_code != 200:
                raise PassingFailure(f"HTTP {response.status_code} from {address.host}")
            async for part in response.aiter_bytes():
                data += part
                if len(data) > LARGEST_IMAGE:
                    raise PassingFailure(f"more than {LARGEST_IMAGE:,} bytes from {address.host}")
    except httpx2.HTTPError as error:
        raise PassingFailure(f"{type(error).__name__} at {address.host}", reached=False) from error
    if not is_image(data):
        raise PassingFailure(f"what is not an image from {address.host}")
    return bytes(data)


def _refusal_or_raise(error: openai.OpenAIError, name: str, settings: OpenAiEditor, key: str) -> Reply:
    """Converts an error of the client to a refusal, or raises it as one of ours."""
    if isinstance(error, openai.APIStatusError):
        message, code = error_of(error.response.text)
        if is_refusal(error.status_code, message, code):
            return Reply(settings.model, refusal=without_key(message, key))
        wait, who = error.response.headers.get("retry-after", ""), f"The backend {name}"
        raise sorted_failure(who, settings.model, error.status_code, message, wait, key, code) from None
    if isinstance(error, openai.APIConnectionError):
        raise transport_failure(error.__cause__ or error) from error
    if isinstance(error, openai.APIResponseValidationError):
        raise PassingFailure("the reply is not in the format of the API") from error
    raise RowFailure(f"the client failed ({type(error).__name__})") from error
