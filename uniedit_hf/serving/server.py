"""Loads the model, serves it, and shuts down gracefully: SIGTERM finishes the running batch and refuses the rest."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import torch
import uvicorn

from uniedit_hf import UniEditPipeline
from uniedit_hf.arithmetic import inference_arithmetic

from .app import create_app
from .connections import bounded_protocol
from .limits import limits_from
from .server_settings import ServerSettings
from .service import Service


logger = logging.getLogger("uniedit.serving")
DTYPES = ("float32", "bfloat16", "float16")


def serve(settings: ServerSettings) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        OSError: If the port is taken or there is no such model.
        ValueError: If a limit or a key is invalid, or the checkpoint is broken.
    """
    limits = limits_from(settings.limits)
    listener = listen(settings.host, settings.port)  # before loading the model, which takes longer
    keys = api_keys(settings.api_keys_env)
    service = Service(load_pipeline(settings), settings, limits)
    _log_to_stderr()
    if not keys and settings.host not in ("127.0.0.1", "localhost", "::1"):
        warning = "No API keys: anyone who can reach %s can use this server. Set %s."
        logger.warning(warning, settings.host, settings.api_keys_env)
    host, port = listener.getsockname()[:2]
    logger.info("Serving %s at http://%s:%d/v1", settings.name, f"[{host}]" if ":" in host else host, port)
    Server(service, keys).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's server; a signal closes the queue before the server shuts down.

    Args:
        service: The model and its queue.
        keys: API keys.
    """

    def __init__(self, service: Service, keys: Sequence[str] = ()):
        limits = service.limits
        config = uvicorn.Config(
            create_app(service, keys),
            http=bounded_protocol(limits.send_seconds, limits.upload_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.max_connections,
        )
        super().__init__(config)
        self.batcher = service.batcher
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.batcher.close)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet.

    Raises:
        OSError: If nothing can listen there.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"Nothing can listen at {host}, port {port} ({error.strerror}): choose another port.") from error
    return listener


def api_keys(variable: str) -> list[str]:
    """The keys in an environment variable, separated by commas.

    Raises:
        ValueError: If one is short enough to be guessed.
    """
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if any(len(key) < 8 for key in keys):
        raise ValueError(f"A key in {variable} has fewer than 8 characters: use longer ones.")
    return keys


def load_pipeline(settings: ServerSettings) -> UniEditPipeline:
    """The model of the settings, on its device."""
    device, dtype = inference_arithmetic(settings.device, settings.dtype)
    options = {"dtype": dtype} | settings.load
    pipe = UniEditPipeline.from_pretrained(settings.model, batch_size=settings.batch_size, **options)
    if not options.keys() & {"device_map", "quantization_config"}:  # these options place the weights
        pipe = pipe.to(device)
    if settings.autoencoder:
        pipe.set_autoencoder(**_with_dtype(settings.autoencoder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_dtype(options: dict) -> dict:
    """Options of `set_autoencoder`, the dtype by its name.

    Raises:
        ValueError: If an option or the dtype is unknown.
    """
    if unknown := sorted(options.keys() - {"dtype", "tile"}):
        raise ValueError(f"autoencoder has no option {unknown[0]}: choose from dtype and tile.")
    name = options.get("dtype")
    if name not in (None, *DTYPES):
        raise ValueError(f"The dtype of autoencoder is {name!r}: choose from {', '.join(DTYPES)}.")
    return options | ({"dtype": getattr(torch, name)} if name else {})


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("uniedit.serving", "uvicorn.error"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(logging.INFO if name == "uniedit.serving" else logging.WARNING)
        log.propagate = False
