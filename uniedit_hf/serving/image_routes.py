"""`/v1/images/generations` and `/v1/images/edits`."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response

from uniedit_hf.streams import Preview

from .api_error import ApiError
from .job import Event, Job, Outcome
from .preparing import invalid
from .schemas import EditRequest, ImageRequest
from .server_events import EventResponse, begun, event
from .service import Service, while_connected


FILES, FIELDS = 16, 100  # maximum in a multipart form


def image_router(service: Service) -> APIRouter:
    """The routes that draw."""
    router = APIRouter(prefix="/v1/images", tags=["images"])

    @router.post("/generations")
    async def generations(request: Request, body: ImageRequest) -> Response:
        """Draws images for a prompt."""
        service.check_model(body.model)
        jobs = await while_connected(request, service.preparer.generations(body))
        return await _answered(service, request, body, jobs, "image_generation")

    multipart = {"schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}}
    json_form = {"schema": EditRequest.model_json_schema()}
    forms = {"content": {"multipart/form-data": multipart, "application/json": json_form}}

    @router.post("/edits", openapi_extra={"requestBody": forms})
    async def edits(request: Request) -> Response:
        """Edits an image by an instruction, sent as a multipart form or as JSON."""
        body, uploads = await _edit_request(request)
        service.check_model(body.model)
        jobs = await while_connected(request, service.preparer.edits(body, uploads))
        return await _answered(service, request, body, jobs, "image_edit")

    return router


async def _answered(
    service: Service, request: Request, body: ImageRequest, jobs: Sequence[Job], name: str
) -> Response:
    service.batcher.submit(jobs)
    try:
        if body.stream:
            events = await while_connected(request, begun(jobs[0].events()))
            return EventResponse(_drawing_events(events, jobs[0], body, name), jobs[0])
        outcomes = await while_connected(request, asyncio.gather(*(job.outcome() for job in jobs)))
        return JSONResponse(await asyncio.to_thread(_images_response, jobs, outcomes, body))
    except BaseException:
        for job in jobs:
            job.left = True
        raise


async def _drawing_events(events: AsyncIterator[Event], job: Job, body: ImageRequest, name: str) -> AsyncIterator[str]:
    """Previews and the image as OpenAI streams them."""
    number = 0
    async for each in events:
        if isinstance(each, Preview):
            shown = await asyncio.to_thread(encoded, each.image, body)
            yield _image_event(f"{name}.partial_image", shown, job, body, partial_image_index=number)
            number += 1
        elif isinstance(each, Outcome):
            shown = await asyncio.to_thread(encoded, each.result, body)
            yield _image_event(f"{name}.completed", shown, job, body, usage=_usage([job], [each]))


def _image_event(kind: str, image: str, job: Job, body: ImageRequest, **more) -> str:
    width, height = job.asked.settings["size"]
    content = {
        "type": kind,
        "b64_json": image,
        "created_at": int(time.time()),
        "size": f"{width}x{height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": body.output_format,
        "seed": job.asked.settings["seed"],
    }
    return event(content | more, kind)


def _images_response(jobs: Sequence[Job], outcomes: Sequence[Outcome], body: ImageRequest) -> dict:
    data = []
    for job, outcome in zip(jobs, outcomes):
        each = {"b64_json": encoded(outcome.result, body), "seed": job.asked.settings["seed"]}
        data.append(each | ({"thoughts": outcome.thoughts} if outcome.thoughts else {}))
    return {
        "created": int(time.time()),
        "data": data,
        "output_format": body.output_format,
        "background": "opaque",
        "usage": _usage(jobs, outcomes),
    }


def _usage(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> dict:
    read, written = sum(job.prompt_tokens for job in jobs), sum(outcome.tokens for outcome in outcomes)
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
    }


def encoded(image: Image.Image, body: ImageRequest) -> str:
    """An image in the requested format, as base64."""
    options = {}
    if body.output_format != "png":
        quality = 100 if body.output_compression is None else body.output_compression
        options = {"quality": quality}
    buffer = io.BytesIO()
    image.save(buffer, body.output_format.upper(), **options)
    return base64.b64encode(buffer.getvalue()).decode()


async def _edit_request(request: Request) -> tuple[EditRequest, list[bytes]]:
    """The request and its files, from either form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return parsed(EditRequest, await request.body()), []
    if kind != "multipart/form-data":
        raise ApiError(415, "An edit is sent as multipart/form-data or as application/json.")
    try:
        async with request.form(max_files=FILES, max_fields=FIELDS) as form:
            values, uploads = {}, []
            for name, value in form.multi_items():
                plain = name.removesuffix("[]")
                if isinstance(value, UploadFile):
                    if plain != "image":
                        raise ApiError(400, f"A file is called {plain[:50]!r}: only image is read.", param=plain[:50])
                    uploads.append(await value.read())
                elif name.endswith("[]"):
                    values.setdefault(plain, []).append(value)
                else:
                    values[name] = value
    except MultiPartException as error:
        raise ApiError(400, f"The multipart form cannot be read: {error.message}") from None
    try:
        return EditRequest.model_validate(values), uploads
    except ValidationError as error:
        raise invalid(error) from None


def parsed(kind: type[BaseModel], data: bytes) -> BaseModel:
    """A request in JSON.

    Raises:
        ApiError: If it is not JSON, or not such a request.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise invalid(error) from None
