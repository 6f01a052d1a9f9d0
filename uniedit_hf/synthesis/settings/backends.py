"""Settings of chat models and image editors. A key is never a setting: a backend names the environment variable
that contains it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from uniedit_hf.calls.call_settings import BackendSettings
from uniedit_hf.calls.openai_chat import Arguments, OpenAiChat, Remote


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
    """`images.edit` of OpenAI or a compatible endpoint.

    Args:
        arguments: Further arguments of the call.
        image_hosts: Hosts from which drawn images may be downloaded, where replies hold addresses instead of images;
            the server of base_url always is one.
    """

    kind: Literal["openai_images"]
    arguments: Arguments = {}
    image_hosts: list[str] = []


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
