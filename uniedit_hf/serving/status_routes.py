"""`/v1/models`, `/health` and `/metrics`."""

from __future__ import annotations

import time

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from .service import Service


def status_router(service: Service) -> APIRouter:
    """The routes that report what is served and how it is doing."""
    router = APIRouter(tags=["status"])
    model = {"id": service.settings.name, "object": "model", "created": int(time.time()), "owned_by": "uniedit_hf"}

    @router.get("/v1/models")
    async def models() -> dict:
        """The one model."""
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        """The model of this name."""
        service.check_model(name)
        return model

    @router.get("/health")
    async def health() -> JSONResponse:
        """Status 200 while requests are taken, else 503."""
        if service.batcher.closed:
            return JSONResponse({"status": "shutting down"}, 503)
        if not service.batcher.healthy:
            return JSONResponse({"status": "the model fails"}, 503)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
