"""An image editor over HTTP, for your own server. Request and response, both as JSON:

POST base_url    {"model", "prompt", "image": PNG as base64, "width", "height", "seed"}
200              {"image": base64 of any image} or {"refusal": why there is none}; "model" may name who drew it
"""

from __future__ import annotations

import base64
import json

import httpx2

from uniedit_hf.calls.call_settings import time_limits
from uniedit_hf.calls.chat_bodies import error_of, parsed_body
from uniedit_hf.calls.failures import key_for, sorted_failure, transport_failure
from uniedit_hf.calls.image_bodies import decoded_image
from uniedit_hf.calls.messages import EditRequest, EncodedImage, PassingFailure, Reply
from uniedit_hf.synthesis.settings import HttpEditor


class HttpEditorBackend:
    """Draws in any size."""

    ratios: dict[str, float] = {}

    def __init__(self, name: str, settings: HttpEditor):
        self.settings, self.who = settings, f"The backend {name}"
        self.parameters = json.dumps(["http_editor", settings.model])
        self.key = key_for(self.who, settings.api_key_env)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx2.AsyncClient(timeout=time_limits(settings.timeout), headers=headers)

    async def reply(self, request: EditRequest) -> Reply:
        width, height = request.size
        body = {
            "model": self.settings.model,
            "prompt": request.prompt,
            "image": base64.b64encode(request.image.png()).decode(),
            "width": width,
            "height": height,
            "seed": request.seed,
        }
        try:
            response = await self.client.post(self.settings.base_url, json=body)
        except httpx2.HTTPError as error:
            raise transport_failure(error) from error
        if not response.is_success:
            wait, (message, code) = response.headers.get("retry-after", ""), error_of(response.text)
            raise sorted_failure(self.who, self.settings.model, response.status_code, message, wait, self.key, code)
        try:
            made = parsed_body(response.text)
            model = str(made.get("model") or self.settings.model)
            if made.get("refusal"):
                return Reply(model, refusal=str(made["refusal"]))
            if not isinstance(made["image"], str):
                raise TypeError("image is not a text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PassingFailure("the reply is not JSON with an image or a refusal") from error
        return Reply(model, image=image) if (image := _image(made)) else Reply(model, text=response.text)

    async def read(self, body: str) -> EncodedImage | None:
        """The image in a stored reply body; None if it cannot be read."""
        return _image(parsed_body(body))

    async def close(self) -> None:
        await self.client.aclose()


def _image(made: dict) -> EncodedImage | None:
    try:
        return EncodedImage(decoded_image(made["image"]))
    except ValueError:
        return None
