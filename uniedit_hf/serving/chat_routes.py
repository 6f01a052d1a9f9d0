"""`/v1/chat/completions`: questions about images and texts, answered at once or word by word."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from uniedit_hf.streams import TextPiece

from .job import Event, Job, Outcome
from .schemas import ChatRequest
from .server_events import DONE, EventResponse, begun, event
from .service import Service, while_connected


def chat_router(service: Service) -> APIRouter:
    """The route that answers."""
    router = APIRouter(prefix="/v1/chat", tags=["chat"])

    @router.post("/completions")
    async def completions(request: Request, body: ChatRequest) -> Response:
        """Answers a conversation."""
        service.check_model(body.model)
        job = await while_connected(request, service.preparer.chat(body))
        service.batcher.submit([job])
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.settings.name,
        }
        try:
            if body.stream:
                events = await while_connected(request, begun(job.events()))
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                return EventResponse(_chunks(events, job, head, with_usage), job)
            return JSONResponse(_completion(await while_connected(request, job.outcome()), job, head))
        except BaseException:
            job.left = True
            raise

    return router


def _completion(outcome: Outcome, job: Job, head: dict) -> dict:
    message = {"role": "assistant", "content": outcome.result, "refusal": None}
    if outcome.thoughts:
        message["reasoning_content"] = outcome.thoughts
    choice = {"index": 0, "message": message, "finish_reason": outcome.finish_reason, "logprobs": None}
    return head | {"object": "chat.completion", "choices": [choice], "usage": _usage(outcome, job)}


async def _chunks(events: AsyncIterator[Event], job: Job, head: dict, with_usage: bool) -> AsyncIterator[str]:
    head = head | {"object": "chat.completion.chunk"}

    def chunk(delta: dict, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event(head | {"choices": [choice]} | ({"usage": None} if with_usage else {}))

    yield chunk({"role": "assistant", "content": ""})
    async for each in events:
        if isinstance(each, TextPiece):
            yield chunk({"reasoning_content" if each.thought else "content": each.text})
        elif isinstance(each, Outcome):
            yield chunk({}, each.finish_reason)
            if with_usage:
                yield event(head | {"choices": [], "usage": _usage(each, job)})
    yield DONE


def _usage(outcome: Outcome, job: Job) -> dict:
    read, written = job.prompt_tokens, outcome.tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
