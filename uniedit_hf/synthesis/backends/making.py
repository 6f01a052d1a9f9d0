"""Creates backends from settings; the packages of a backend are imported only if it is used."""

from __future__ import annotations

from uniedit_hf.calls.messages import BackendError
from uniedit_hf.synthesis.settings import (
    BackendSettings,
    DiffusersEditor,
    GeminiChat,
    GeminiEditor,
    HttpEditor,
    OpenAiChat,
    OpenAiEditor,
    TransformersChat,
)


def make_backend(name: str, settings: BackendSettings):
    """The backend with this name in the settings: an object with `parameters`, `key`, `async reply(request)` and
    `async close()`, and for an editor the aspect `ratios` that it draws in.

    Raises:
        BackendError: If a package is not installed, a key is not set, or a local model does not exist.
    """
    try:
        match settings:
            case OpenAiChat():
                from uniedit_hf.calls.openai_chat import OpenAiChatBackend as Backend
            case OpenAiEditor():
                from uniedit_hf.synthesis.backends.openai import OpenAiEditorBackend as Backend
            case GeminiChat():
                from uniedit_hf.synthesis.backends.gemini import GeminiChatBackend as Backend
            case GeminiEditor():
                from uniedit_hf.synthesis.backends.gemini import GeminiEditorBackend as Backend
            case HttpEditor():
                from uniedit_hf.synthesis.backends.http_editor import HttpEditorBackend as Backend
            case TransformersChat():
                from uniedit_hf.synthesis.backends.transformers_chat import TransformersChatBackend as Backend
            case DiffusersEditor():
                from uniedit_hf.synthesis.backends.diffusers_editor import DiffusersEditorBackend as Backend
    except ModuleNotFoundError as error:
        raise BackendError(
            f'The backend {name} needs the package {error.name}: run `pip install "uniedit_hf[synthesis]"`.'
        ) from error
    return Backend(name, settings)
