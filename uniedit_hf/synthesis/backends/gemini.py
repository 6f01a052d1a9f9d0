"""Google's models through google-genai: chat with structured answers, and images."""

from __future__ import annotations

import json

import httpx2
from google import genai
from google.genai import errors, types
from pydantic import ValidationError

from uniedit_hf.calls.failures import key_for, sorted_failure, transport_failure
from uniedit_hf.calls.messages import BackendError, ChatRequest, EditRequest, EncodedImage, PassingFailure, Reply
from uniedit_hf.calls.openai_chat import check_arguments
from uniedit_hf.synthesis.geometry import nearest_ratio
from uniedit_hf.synthesis.settings import HEADERS, GeminiChat, GeminiEditor


class _Gemini:
    def __init__(self, name: str, settings: GeminiChat | GeminiEditor):
        self.settings, self.who = settings, f"The backend {name}"
        self.key = key_for(self.who, settings.api_key_env)
        options = types.HttpOptions(
            base_url=settings.base_url,
            timeout=int(settings.timeout * 1000),
            # Otherwise it would use aiohttp's client if that is installed, which raises different errors.
            httpx_async_client=httpx2.AsyncClient(timeout=settings.timeout),
        )
        self.client = genai.Client(api_key=self.key or "none", http_options=options)

    async def _ask(self, parts: list, config: types.GenerateContentConfig) -> types.GenerateContentResponse:
        try:
            return await self.client.aio.models.generate_content(
                model=self.settings.model, contents=parts, config=config
            )
        except errors.APIError as error:
            message = str(error.message or error.status)
            raise sorted_failure(self.who, self.settings.model, error.code, message, "", self.key) from None
        except httpx2.HTTPError as error:
            raise transport_failure(error) from error
        except json.JSONDecodeError as error:
            raise PassingFailure("the reply is not in the format of the API") from error

    def _reply(self, made: types.GenerateContentResponse, text: str | None, image: EncodedImage | None) -> Reply:
        """The reply, or a refusal if it is empty."""
        usage, refusal = made.usage_metadata, None
        if not text and image is None:
            blocked = made.prompt_feedback.block_reason if made.prompt_feedback else None
            finished = made.candidates[0].finish_reason if made.candidates else None
            refusal = f"no content ({(blocked or finished or 'no reason given')!s})"
        return Reply(
            made.model_version or self.settings.model,
            text=text,
            image=image,
            refusal=refusal,
            tokens_in=(usage.prompt_token_count or 0) if usage else 0,
            tokens_out=(usage.candidates_token_count or 0) if usage else 0,
        )

    async def close(self) -> None:
        await self.client.aio.aclose()


class GeminiChatBackend(_Gemini):
    """Answers in the JSON schema of the request."""

    OURS = (*HEADERS, "candidate_count", "response_json_schema", "response_mime_type", "response_modalities",
            "response_schema", "system_instruction")  # fmt: skip

    def __init__(self, name: str, settings: GeminiChat):
        check_arguments(name, settings.arguments, types.GenerateContentConfig.model_fields, self.OURS)
        try:
            self.config = types.GenerateContentConfig(**settings.arguments)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise BackendError(f"The backend {name}: arguments.{first['loc'][0]}: {first['msg']}.") from None
        super().__init__(name, settings)
        self.parameters = json.dumps(
            ["gemini", settings.model, settings.arguments, settings.image_side], sort_keys=True
        )

    async def reply(self, request: ChatRequest) -> Reply:
        parts = [
            types.Part.from_bytes(data=image.png(self.settings.image_side), mime_type="image/png")
            for image in request.images
        ]
        given = {
            "system_instruction": request.system,
            "response_mime_type": "application/json",
            "response_json_schema": request.answer.model_json_schema(),
        }
        if request.attempt:
            given["seed"] = (self.config.seed or 0) + request.attempt
        config = self.config.model_copy(update=given)
        made = await self._ask([*parts, types.Part.from_text(text=request.text)], config)
        return self._reply(made, "".join(part.text or "" for part in _parts(made)), None)


class GeminiEditorBackend(_Gemini):
    """Draws in the nearest aspect ratio that the model supports, one of its `ratios`."""

    NAMES = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
    ratios = {name: int(name.split(":")[0]) / int(name.split(":")[1]) for name in NAMES}

    def __init__(self, name: str, settings: GeminiEditor):
        super().__init__(name, settings)
        self.parameters = json.dumps(["gemini_images", settings.model, settings.image_size])

    async def reply(self, request: EditRequest) -> Reply:
        config = types.GenerateContentConfig(
            response_modalities=["TEXT", "IMAGE"],
            image_config=types.ImageConfig(
                aspect_ratio=nearest_ratio(request.size, self.ratios), image_size=self.settings.image_size
            ),
            seed=request.seed,
        )
        source = types.Part.from_bytes(data=request.image.png(), mime_type="image/png")
        made = await self._ask([types.Part.from_text(text=request.prompt), source], config)
        data = next((part.inline_data.data for part in _parts(made) if part.inline_data), None)
        return self._reply(made, None, EncodedImage(data) if data else None)


def _parts(made: types.GenerateContentResponse) -> list[types.Part]:
    content = made.candidates[0].content if made.candidates else None
    return (content.parts or []) if content else []
