"""The web application: routes, middleware, and error handlers that answer in OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from uniedit_hf import __version__

from .api_error import ApiError
from .chat_routes import chat_router
from .image_routes import image_router
from .middleware import Bounded, Keyed, Watched
from .service import Service
from .status_routes import status_router


logger = logging.getLogger("uniedit.serving")


def create_app(service: Service, keys: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        service: The model and its queue.
        keys: API keys; with an empty list anyone may send requests.
    """
    app = FastAPI(title="uniedit_hf", version=__version__, docs_url=None, redoc_url=None)
    for router in (image_router(service), chat_router(service), status_router(service)):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(Exception, _our_error)
    # the middleware added last runs first
    app.add_middleware(Bounded, service=service)
    app.add_middleware(Keyed, keys=keys)
    app.add_middleware(Watched, service=service)
    return app


async def _http_error(request: Request, error: HTTPException) -> Response:
    if isinstance(error, ApiError):
        return error.response
    return ApiError(error.status_code, f"{error.detail.rstrip('.')}.", headers=error.headers).response


async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    """The first error, without the value that was sent."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The request is not valid JSON.").response
    place = ".".join(str(part)[:100] for part in first["loc"] if part != "body")
    if not place:
        return ApiError(400, "The request must be a JSON object, sent as application/json.").response
    return ApiError(400, f"{place}: {first['msg']}."[:600], param=place).response


async def _our_error(request: Request, error: Exception) -> Response:
    return ApiError(500, "The server failed at this request; its log says why.", code="internal_error").response
