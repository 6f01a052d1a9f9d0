"""Turns requests into jobs, after checking them against the model and the limits."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from uniedit_hf import UniEditPipeline
from uniedit_hf.conversations import conversation_sample
from uniedit_hf.segments import SURROGATES, ImageSegment, Sample, TextSegment

from .api_error import ApiError
from .grammars import Grammars
from .image_reader import ImageReader
from .job import Drawing, Job, Writing
from .limits import Limits
from .schemas import ChatRequest, EditRequest, ImageRequest, Message


SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)
DEFAULT_NEW_TOKENS = 512
MAX_STOPS = 4


class Preparer:
    """Makes jobs of requests.

    Args:
        pipe: The pipeline; only sizes, tokens and settings are read here.
        limits: The limits of a request.
        reader: Opens images.
    """

    def __init__(self, pipe: UniEditPipeline, limits: Limits, reader: ImageReader):
        self.pipe, self.limits, self.reader = pipe, limits, reader
        self.image_settings = _settings_model(pipe.model.image_settings)
        self.grammars = Grammars(pipe.processor.tokenizer, pipe.model.config.get_text_config().vocab_size)

    # --- drawings -----------------------------------------------------------------------------------------------

    async def generations(self, request: ImageRequest) -> list[Job]:
        """The jobs of a request to draw, one for each image."""
        self._check_drawing(request)
        return await asyncio.to_thread(self._drawings, request, None, _Loop())

    async def edits(self, request: EditRequest, uploads: Sequence[bytes]) -> list[Job]:
        """The jobs of a request to edit, one for each result.

        Args:
            request: The fields other than files.
            uploads: The files; if there are none, the image is in the request.
        """
        self._check_drawing(request)
        references = [each for each in (request.image, *(image.image_url for image in request.images)) if each]
        if len(references) + len(uploads) != 1:
            raise ApiError(
                400,
                f"The request has {len(references) + len(uploads)} images, but an edit has one source: send one.",
                param="image",
            )
        image = await (self.reader.open(uploads[0], "image") if uploads else self.reader.read(references[0], "image"))
        return await asyncio.to_thread(self._drawings, request, image, _Loop())

    def _check_drawing(self, request: ImageRequest) -> None:
        self._check_text([request.prompt], "prompt")
        self._check_thinking(request.thinking_budget)
        if request.n > self.limits.max_images:
            raise ApiError(400, f"n is {request.n}: this server draws up to {self.limits.max_images}.", param="n")
        if request.partial_images and not request.stream:
            raise ApiError(400, "partial_images come in a stream: set stream to true.", param="partial_images")
        if request.stream and request.n > 1:
            raise ApiError(400, f"n is {request.n}, but a stream shows one image: set n to 1.", param="n")

    def _drawings(self, request: ImageRequest, image: Image.Image | None, loop: _Loop) -> list[Job]:
        processor, segments, views = self.pipe.processor, [], getattr(request, "source_views", None)
        try:
            if image is not None:
                views = self._views(views)
                image = processor.open_source(image)
                segments = [ImageSegment(image, view) for view in views]
            chosen = self._image_settings(request, image)
            prompt_tokens = processor.num_tokens(Sample([*segments, TextSegment(request.prompt)]))
            drawn = processor.drawn_tokens(*chosen["size"])
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        tokens = prompt_tokens + drawn + request.thinking_budget
        seed = secrets.randbits(31) if request.seed is None else request.seed
        jobs = []
        for number in range(request.n):
            asked = Drawing(
                "generate" if image is None else "edit",
                request.prompt,
                image,
                chosen | {"seed": (seed + number) % 2**63},
                views,
                request.thinking_budget,
                request.partial_images,
            )
            jobs.append(loop.job(asked, tokens, self.limits.request_seconds, prompt_tokens))
        return jobs

    def _views(self, asked: list[str] | None) -> tuple[str, ...]:
        processor = self.pipe.processor
        if asked is None:
            return tuple(processor.source_views)
        try:
            return processor.make_conditioning(source_views=asked).source_views
        except ValueError as error:
            raise ApiError(400, str(error), param="source_views") from None

    def _image_settings(self, request: ImageRequest, image: Image.Image | None) -> dict[str, Any]:
        """All settings of the drawing: the requested ones, and the model's defaults for the others."""
        kind = self.pipe.model.image_settings
        given = self._own_settings(request.model_extra or {})
        if given.get("num_timesteps", 0) > self.limits.max_timesteps:
            raise ApiError(400, f"num_timesteps is at most {self.limits.max_timesteps} here.", param="num_timesteps")
        size = self._size(request.size)
        if size is None and image is not None:
            size = self.pipe.processor.output_size(image)
        elif size is None:
            size = self.pipe.processor.default_size(self.pipe.model.config)
        defaults = kind.drawing if image is None else kind.editing
        made = kind(width=size[0], height=size[1], **defaults | given)
        self.pipe.model.check_image_settings([made])
        chosen = {each.name: getattr(made, each.name) for each in fields(kind)}
        del chosen["width"], chosen["height"]
        return chosen | {"size": tuple(size)}

    def _own_settings(self, extra: dict[str, Any]) -> dict[str, Any]:
        known = sorted(self.image_settings.model_fields)
        if unknown := sorted(set(extra) - set(known)):
            raise ApiError(
                400,
                f"There is no field {unknown[0][:100]!r}: in addition to OpenAI's there are {', '.join(known)}, "
                "thinking_budget and, of edits, source_views.",
                param=unknown[0][:100],
            )
        try:
            found = self.image_settings.model_validate(extra).model_dump(exclude_unset=True)
        except ValidationError as error:
            raise invalid(error) from None
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}

    @staticmethod
    def _size(asked: str) -> tuple[int, int] | None:
        if asked == "auto":
            return None
        found = SIZE.fullmatch(asked)
        if found is None:
            raise ApiError(400, "size is auto, or width and height such as 1024x1024.", param="size")
        return int(found[1]), int(found[2])

    # --- conversations ------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> Job:
        """The job of a conversation."""
        self._check_thinking(request.thinking_budget)
        longest = request.max_completion_tokens or request.max_tokens
        if longest is not None and longest > self.limits.max_new_tokens:
            raise ApiError(400, f"max_tokens is at most {self.limits.max_new_tokens} here.", param="max_tokens")
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
        if len(stop) > MAX_STOPS or not all(0 < len(each) <= 200 for each in stop):
            raise ApiError(400, f"stop has up to {MAX_STOPS} texts of 1 to 200 characters.", param="stop")
        messages = await self._messages(request.messages)
        return await asyncio.to_thread(self._writing, request, messages, longest, stop, _Loop())

    def _writing(self, request: ChatRequest, messages: list[dict], longest, stop, loop: _Loop) -> Job:
        processor = self.pipe.processor
        try:
            sample = conversation_sample(messages, lambda image, name: image)
            prompt_tokens = processor.num_tokens(sample)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error
        most = longest or min(DEFAULT_NEW_TOKENS, self.limits.max_new_tokens)
        asked = Writing(
            messages=messages,
            max_new_tokens=most,
            thinking_budget=request.thinking_budget,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=secrets.randbits(31) if request.seed is None else request.seed,
            stop=stop,
            grammar=self._grammar(request),
            streamed=request.stream,
        )
        tokens = prompt_tokens + most + request.thinking_budget
        return loop.job(asked, tokens, self.limits.request_seconds, prompt_tokens)

    def _grammar(self, request: ChatRequest):
        schema = request.response_format and request.response_format.schema_dict
        if schema is None:
            return None
        if request.thinking_budget:
            raise ApiError(
                400,
                "An answer in JSON cannot be preceded by reasoning: leave out thinking_budget.",
                param="thinking_budget",
            )
        return self.grammars.matcher(json.dumps(schema))

    async def _messages(self, messages: Sequence[Message]) -> list[dict]:
        """The messages in the pipeline's form, with opened images."""
        contents = [[each.content] if isinstance(each.content, str) else each.content for each in messages]
        parts = [part for content in contents for part in content]
        texts = [part if isinstance(part, str) else part.text for part in parts if not hasattr(part, "image_url")]
        self._check_text(texts, "messages")
        if len(parts) - len(texts) > self.limits.max_images:
            raise ApiError(400, f"The messages have more than {self.limits.max_images} images.", param="messages")
        made = []
        for message, content in zip(messages, contents):
            role = "system" if message.role == "developer" else message.role
            if any(hasattr(part, "image_url") for part in content) and role != "user":
                raise ApiError(400, f"A message of the role {role} has an image: only the user shows images.")
            made.append({"role": role, "content": [await self._part(part) for part in content]})
        return made

    async def _part(self, part) -> dict:
        if not hasattr(part, "image_url"):
            return {"type": "text", "text": part if isinstance(part, str) else part.text}
        image = await self.reader.read(part.image_url.url, "image_url")
        try:
            return {"type": "image", "image": await asyncio.to_thread(self.pipe.processor.open_source, image)}
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_image", param="image_url") from error

    # --- shared -------------------------------------------------------------------------------------------------

    def _check_text(self, texts: Sequence[str], name: str) -> None:
        if not any(text.strip() for text in texts):
            raise ApiError(400, f"{name} is empty: write what the model should do.", param=name)
        if any(SURROGATES.search(text) for text in texts):
            raise ApiError(400, f"{name} has half a character (a lone surrogate): send valid Unicode.", param=name)
        if (count := sum(map(len, texts))) > self.limits.max_characters:
            raise ApiError(
                400,
                f"{name} has {count:,} characters; up to {self.limits.max_characters:,} are read: shorten it.",
                code="context_length_exceeded",
                param=name,
            )

    def _check_thinking(self, budget: int) -> None:
        if budget and self.pipe.processor.thinking_prompts is None:
            raise ApiError(400, "This model cannot be asked to think first: leave it out.", param="thinking_budget")
        if budget > self.limits.max_new_tokens:
            raise ApiError(
                400, f"thinking_budget is at most {self.limits.max_new_tokens} here.", param="thinking_budget"
            )


class _Loop:
    """Creates jobs in another thread for the event loop that it was made in."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()

    def job(self, asked: Drawing | Writing, tokens: int, seconds: float, prompt_tokens: int) -> Job:
        return Job(asked, tokens, seconds, prompt_tokens, loop=self.loop)


def _settings_model(image_settings: type) -> type[BaseModel]:
    """A pydantic model of the fields of a family's `ImageSettings` that a request may set."""
    hints = get_type_hints(image_settings)
    left_out = ("width", "height", "seed")
    taken: Any = {
        each.name: (hints[each.name], each.default) for each in fields(image_settings) if each.name not in left_out
    }
    config = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)
    return create_model("ImageSettings", __config__=config, **taken)


def invalid(error: ValidationError) -> ApiError:
    """The first error of a request, without the value that was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:100] for part in first["loc"])
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return ApiError(400, message[:500] + ".", param=place or None)
