"""Who is asked. Keys to services are never settings: a backend names the environment variable that holds its key."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from uniedit_hf.calls.call_settings import BackendSettings


HEADERS = {"extra_headers", "extra_query", "http_options"}


class Remote(BackendSettings):
    """A backend behind HTTP.

    Args:
        base_url: Its address; the service's own by default.
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


# Further arguments of a call, without those in which keys travel: settings stand in reports and logs.
Arguments = Annotated[dict[str, Any], AfterValidator(_without_headers)]


class OpenAiChat(Remote):
    """Any chat model behind an OpenAI-compatible endpoint; a vLLM or SGLang server is a `base_url`.

    Args:
        arguments: Further arguments of the call, such as temperature; what a server takes beyond OpenAI's, such as
            top_k, goes into extra_body.
        image_side: Images are made smaller for the model where a side has more pixels.
    """

    kind: Literal["openai"]
    arguments: Arguments = {}
    image_side: PositiveInt = 1024


class GeminiChat(Remote):
    """A chat model of Google's. Args as of `OpenAiChat`."""

    kind: Literal["gemini"]
    api_key_env: str | None = "GEMINI_API_KEY"
    arguments: Arguments = {}
    image_side: PositiveInt = 1024


class TransformersChat(BackendSettings):
    """A vision-language model of transformers on this machine.

    Args:
        device: Where it runs.
        dtype: Of its weights.
        batch_size: Questions in one batch at most.
        max_new_tokens: Tokens of an answer at most.
        image_side: As of `OpenAiChat`.
    """

    kind: Literal["transformers"]
    device: str = "cpu"
    dtype: str = "auto"
    batch_size: PositiveInt = 8
    max_new_tokens: PositiveInt = 1024
    image_side: PositiveInt = 1024


class OpenAiEditor(Remote):
    """`images.edit` of OpenAI or a compatible endpoint. `arguments` are further ones of the call."""

    kind: Literal["openai_images"]
    arguments: Arguments = {}


class GeminiEditor(Remote):
    """An image model of Google's, with the resolution that it calls `image_size`."""

    kind: Literal["gemini_images"]
    api_key_env: str | None = "GEMINI_API_KEY"
    image_size: str = "1K"


class HttpEditor(Remote):
    """A server of one's own: see `uniedit_hf.synthesis.backends.http_editor` for what is sent and expected."""

    kind: Literal["http_editor"]
    base_url: str


class DiffusersEditor(BackendSettings):
    """Any diffusers pipeline that takes an image and a prompt, on this machine.

    Args:
        device: Where it runs.
        dtype: Of its weights.
        batch_size: Images of one size in one batch at most.
        arguments: Further arguments of the pipeline's call, such as num_inference_steps.
    """

    kind: Literal["diffusers"]
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: PositiveInt = 1
    arguments: Arguments = {}


Chat = OpenAiChat | GeminiChat | TransformersChat
Editor = OpenAiEditor | GeminiEditor | HttpEditor | DiffusersEditor
Backend = Annotated[Chat | Editor, Field(discriminator="kind")]
