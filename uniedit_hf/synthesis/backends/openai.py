"""`images.edit` of OpenAI-compatible endpoints."""

from __future__ import annotations

import base64
import inspect
import json
import re

import openai
from openai import AsyncOpenAI
from openai.resources.images import AsyncImages

from uniedit_hf.calls.failures import is_refusal, key_for, sorted_failure
from uniedit_hf.calls.messages import EditRequest, EncodedImage, PassingFailure, Reply, RowFailure
from uniedit_hf.calls.openai_chat import check_arguments
from uniedit_hf.synthesis.geometry import nearest_ratio
from uniedit_hf.synthesis.settings import HEADERS, OpenAiEditor


EDIT_ARGUMENTS = set(inspect.signature(AsyncImages.edit).parameters) - {"self"}


def _client(name: str, settings: OpenAiEditor) -> tuple[AsyncOpenAI, str]:
    """The client and its key. Retries are ours, so that they are counted; a local server needs no key."""
    default = None if settings.base_url else "OPENAI_API_KEY"
    key = key_for(f"The backend {name}", settings.api_key_env or default)
    client = AsyncOpenAI(
        api_key=key or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0, organization=""
    )
    return client, key


class OpenAiEditorBackend:
    """`images.edit`; the size asked for is the nearest of those that the model draws, unless `arguments` name one.

    Its `ratios` are the proportions that it draws in: none where it is left to the model ("auto").
    """

    SIZES = {"1024x1024": 1.0, "1536x1024": 1.5, "1024x1536": 1 / 1.5}
    OURS = (*HEADERS, "image", "model", "n", "partial_images", "prompt", "response_format", "stream", "timeout")

    def __init__(self, name: str, settings: OpenAiEditor):
        check_arguments(name, settings.arguments, EDIT_ARGUMENTS, self.OURS)
        self.name, self.settings = name, settings
        self.parameters = json.dumps(["openai_images", settings.model, settings.arguments], sort_keys=True)
        self.ratios = _ratios(settings.arguments["size"]) if "size" in settings.arguments else self.SIZES
        self.client, self.key = _client(name, settings)

    async def reply(self, request: EditRequest) -> Reply:
        arguments = self.settings.arguments
        if "size" not in arguments:
            arguments = arguments | {"size": nearest_ratio(request.size, self.SIZES)}
        try:
            made = await self.client.images.edit(
                model=self.settings.model,
                image=("source.png", request.image.png(), "image/png"),
                prompt=request.prompt,
                **arguments,
            )
        except openai.OpenAIError as error:
            return _refusal_or_raise(error, self.name, self.settings, self.key)
        data, tokens = made.data[0].b64_json if made.data else None, made.usage
        image, refusal = None, None if data else "the reply holds no image"
        try:
            image = EncodedImage(base64.b64decode(data, validate=True)) if data else None
        except ValueError:
            refusal = "the image in the reply is not base64"  # it has been paid for, so it is kept like any other
        return Reply(
            self.settings.model,
            image=image,
            refusal=refusal,
            tokens_in=tokens.input_tokens if tokens else 0,
            tokens_out=tokens.output_tokens if tokens else 0,
        )

    async def close(self) -> None:
        await self.client.close()


def _ratios(size: str) -> dict[str, float]:
    """The one proportion of a size such as "1024x1024"."""
    found = re.fullmatch(r"(\d+)x(\d+)", str(size))
    return {str(size): int(found[1]) / int(found[2])} if found else {}


def _refusal_or_raise(error: openai.OpenAIError, name: str, settings: OpenAiEditor, key: str) -> Reply:
    """What an error of the client means."""
    if isinstance(error, openai.APIStatusError):
        message, code = _body_message(error), str(error.code or "")
        if is_refusal(error.status_code, message, code):
            return Reply(settings.model, refusal=message)
        wait, who = error.response.headers.get("retry-after", ""), f"The backend {name}"
        raise sorted_failure(who, settings.model, error.status_code, message, wait, key, code) from None
    if isinstance(error, (openai.APITimeoutError, openai.APIConnectionError)):
        reason = "no reply in time" if isinstance(error, openai.APITimeoutError) else "the connection broke"
        raise PassingFailure(reason, reached=False) from error
    if isinstance(error, openai.APIResponseValidationError):
        raise PassingFailure("the reply is not in the format of the API") from error
    raise RowFailure(f"the client failed ({type(error).__name__})") from error


def _body_message(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.response.reason_phrase)
