"""Chat models behind OpenAI-compatible endpoints, as OpenAI, vLLM and SGLang serve them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx2
from pydantic import AfterValidator, PositiveInt, field_validator

from uniedit_hf.calls.call_settings import BackendSettings, time_limits
from uniedit_hf.calls.chat_bodies import ErrorBody, error_of, read_completion
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
from uniedit_hf.calls.messages import BackendError, ChatRequest, PassingFailure, Reply, RowFailure, data_url


OPENAI = "https://api.openai.com/v1"
HEADERS = {"extra_headers", "extra_query", "http_options"}
# Parameters of the service besides messages and model; those of other servers go into `extra_body`.
ARGUMENTS = frozenset((
    "audio", "extra_body", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
    "safety_identifier", "seed", "service_tier", "stop", "store", "temperature", "tool_choice", "top_logprobs",
    "top_p", "user", "verbosity", "web_search_options",
))  # fmt: skip
OURS = (*HEADERS, "messages", "model", "n", "response_format", "stream", "stream_options", "timeout", "tools")
PROBE = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Reply with the word ok."}]}]}


class Remote(BackendSettings):
    """A backend over HTTP.

    Args:
        base_url: Its address; that of the service by default.
        api_key_env: The environment variable with the key.
    """

    base_url: str | None = None
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no key; name an environment variable in api_key_env")
        return address


def _without_headers(arguments: dict[str, Any]) -> dict[str, Any]:
    found = HEADERS & arguments.keys()
    if found:
        raise ValueError(f"{min(found)} may hold a key, and settings are kept; name a variable in api_key_env instead")
    return arguments


# Further arguments of a call, without those that carry keys, because settings appear in reports and logs.
Arguments = Annotated[dict[str, Any], AfterValidator(_without_headers)]


class OpenAiChat(Remote):
    """Any chat model behind an OpenAI-compatible endpoint; a vLLM or SGLang server is a `base_url`.

    Args:
        arguments: Further arguments of the call, such as temperature; parameters that OpenAI does not have, such as
            top_k, go into extra_body.
        image_side: Images with a longer side, in pixels, are scaled down for the model.
    """

    kind: Literal["openai"]
    arguments: Arguments = {}
    image_side: PositiveInt = 1024


class OpenAiChatBackend:
    """Asks a chat model, with the JSON schema of the request's answer if it has one.

    Args:
        name: Its name in the settings.
        settings: Model and address.
        who: The backend, as the beginning of a sentence.

    Raises:
        BackendError: If the key is not set, or the call has no such argument.
    """

    def __init__(self, name: str, settings: OpenAiChat, who: str = ""):
        check_arguments(name, settings.arguments, ARGUMENTS, OURS)
        self.settings, self.who = settings, who or f"The backend {name}"
        arguments = settings.arguments
        self.parameters = json.dumps(["openai", settings.model, arguments, settings.image_side], sort_keys=True)
        self.base_url = (settings.base_url or OPENAI).rstrip("/")
        self.key = key_for(self.who, settings.api_key_env or (None if settings.base_url else "OPENAI_API_KEY"))
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx2.AsyncClient(timeout=time_limits(settings.timeout), headers=headers)
        self.answered = False

    async def reply(self, request: ChatRequest) -> Reply:
        body: dict[str, Any] = {"model": self.settings.model, "messages": self._messages(request)}
        if request.answer is not None:
            schema = {"name": request.answer.__name__, "schema": request.answer.model_json_schema(), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body |= self._arguments()
        if request.attempt:
            body["seed"] = body.get("seed", 0) + request.attempt
        return await self._ask(body)

    def _arguments(self) -> dict[str, Any]:
        own = {name: value for name, value in self.settings.arguments.items() if name != "extra_body"}
        return own | (self.settings.arguments.get("extra_body") or {})

    async def check(self) -> None:
        """Checks that the server accepts the key before anything is paid for: by listing its models, which costs
        nothing, or else by a short question.

        Raises:
            BackendError: If no call can succeed. A server that is down or busy is not an error, because it may be
                available later.
        """
        try:
            listed = await self.client.get(f"{self.base_url}/models")
            if listed.status_code in (401, 402, 403):
                raise self._failure(listed)
            if listed.status_code != 200:
                await self._ask(PROBE | {"model": self.settings.model} | self._arguments())
        except (httpx2.HTTPError, PassingFailure, RowFailure):
            return

    async def close(self) -> None:
        await self.client.aclose()

    async def _ask(self, body: dict) -> Reply:
        try:
            response = await self.client.post(f"{self.base_url}/chat/completions", json=body)
        except httpx2.HTTPError as error:
            raise transport_failure(error) from error
        message, code = error_of(response.text) if not response.is_success else ("", "")
        if is_refusal(response.status_code, message, code):
            return Reply(self.settings.model, refusal=without_key(message, self.key))
        if not response.is_success or is_html(response.text):
            raise self._failure(response)
        try:
            made = read_completion(response.text)
        except ErrorBody as error:
            return refusal_in_body(self.who, self.settings.model, error, self.key)
        self.answered = True
        return Reply(
            made.model or self.settings.model, made.text, refusal=made.refusal, tokens_in=made.tokens_in,
            tokens_out=made.tokens_out, cut=made.finish == "length",
        )  # fmt: skip

    def _failure(self, response: httpx2.Response) -> Exception:
        """The exception for a reply that is not a completion."""
        status, (message, code) = response.status_code, error_of(response.text)
        if is_html(response.text) and status < 500 and status not in (401, 402, 403):
            return html_failure(self.who, self.base_url, status, self.answered)
        wait = response.headers.get("retry-after", "")
        return sorted_failure(self.who, self.settings.model, status, message, wait, self.key, code)

    def _messages(self, request: ChatRequest) -> list[dict]:
        text = {"type": "text", "text": request.text}
        urls = [data_url(image.png(self.settings.image_side)) for image in request.images]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [text, *images] if request.text_first else [*images, text]
        system = [{"role": "system", "content": request.system}] if request.system else []
        return [*system, {"role": "user", "content": content}]


def check_arguments(name: str, arguments, takes, ours) -> None:
    """Checks the arguments of a call before the first one is made.

    Args:
        name: Name of the backend.
        arguments: Names in the settings.
        takes: Names that the call accepts.
        ours: Those that we set ourselves.

    Raises:
        BackendError: If the call has no such argument, or we set it ourselves.
    """
    for argument in arguments:
        if argument in ours:
            raise BackendError(
                f"The backend {name}: {argument!r} is given by every request itself; leave it out of arguments."
            )
        if argument not in takes:
            raise BackendError(
                f"The backend {name} takes no {argument!r} among its arguments; known are "
                f"{', '.join(sorted(set(takes) - set(ours)))}."
            )
