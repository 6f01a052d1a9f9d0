"""Settings of chat models and image editors. A key is never a setting: a backend names the environment variable
that contains it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from uniedit_hf.calls.call_settings import BackendSettings
from uniedit_hf.calls.openai_chat import Arguments, OpenAiChat, Remote


class GeminiChat(Remote):
    """A chat model by Google. Args as in `OpenAiChat`."""

    kind: Literal["gemini"]
    api_key_env: str | None = "GEMINI_API_KEY"
    arguments: Arguments = {}
    image_side: PositiveInt = 1024


class TransformersChat(BackendSettings):
    """A local vision-language model of transformers.

    Args:
        device: The device it runs on.
        dtype: dtype of its weights.
        batch_size: Maximum number of questions in a batch.
        max_new_tokens: Maximum number of tokens in an answer.
        image_side: As in `OpenAiChat`.
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
        image_hosts: Hosts from which results may be downloaded if replies contain URLs instead of images; the host of
            base_url is always allowed.
    """

    kind: Literal["openai_images"]
    arguments: Arguments = {}
    image_hosts: list[str] = []


class GeminiEditor(Remote):
    """An image model by Google, with its resolution parameter `image_size`."""

    kind: Literal["gemini_images"]
    api_key_env: str | None = "GEMINI_API_KEY"
    image_size: str = "1K"


class HttpEditor(Remote):
    """Your own server: see `uniedit_hf.synthesis.backends.http_editor` for request and response."""

    kind: Literal["http_editor"]
    base_url: str


class DiffusersEditor(BackendSettings):
    """Any local diffusers pipeline that takes an image and a prompt.

    Args:
        device: The device it runs on.
        dtype: dtype of its weights.
        batch_size: Maximum number of images (of one size) in a batch.
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
