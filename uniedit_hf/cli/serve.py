"""`uniedit serve`: serves a model over OpenAI's routes."""

from __future__ import annotations

from uniedit_hf.serving.server_settings import ServerSettings


def run(settings: ServerSettings) -> None:
    try:
        from uniedit_hf.serving.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f'The server needs {error.name}, which is not installed: pip install "uniedit_hf[serving]".'
        ) from error
    serve(settings)
