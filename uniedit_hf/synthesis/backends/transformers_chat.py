"""A local vision-language model of transformers, run in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence

from uniedit_hf.calls.messages import BackendError, ChatRequest, Reply
from uniedit_hf.synthesis.backends.batches import Batches
from uniedit_hf.synthesis.settings import TransformersChat


FORM = "Answer with one JSON object of this schema and nothing else:"


class TransformersChatBackend:
    """Greedy, so that the same question gives the same answer; samples when it is asked again because the form was
    wrong.

    Raises:
        BackendError: If there is no such model.
    """

    key = ""

    def __init__(self, name: str, settings: TransformersChat):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.settings = settings
        self.parameters = json.dumps(
            ["transformers", settings.model, settings.dtype, settings.max_new_tokens, settings.image_side]
        )
        try:
            self.processor = AutoProcessor.from_pretrained(settings.model)
            self.model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=settings.dtype)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise BackendError(f"The backend {name} cannot load {settings.model!r} ({first}): check model.") from error
        self.model.to(settings.device).eval()
        self.processor.tokenizer.padding_side = "left"
        # Not every processor accepts questions with and without images in one batch.
        self.batches = Batches(
            self._replies, settings.batch_size, kind=lambda request: (request.attempt, len(request.images))
        )

    async def reply(self, request: ChatRequest) -> Reply:
        return await self.batches.reply(request)

    def _replies(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        import torch

        inputs = self.processor.apply_chat_template(
            [self._messages(request) for request in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.settings.device)
        attempt = requests[0].attempt
        torch.manual_seed(attempt)
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=self.settings.max_new_tokens, do_sample=attempt > 0)
        length = inputs["input_ids"].shape[1]
        texts = self.processor.batch_decode(made[:, length:], skip_special_tokens=True)
        pad = self.processor.tokenizer.pad_token_id
        return [
            Reply(self.settings.model, text, tokens_in=int(mask.sum()), tokens_out=int((ids != pad).sum()))
            for text, ids, mask in zip(texts, made[:, length:], inputs["attention_mask"])
        ]

    def _messages(self, request: ChatRequest) -> list[dict]:
        from PIL import Image

        images = [image.pixels() for image in request.images]
        for image in images:
            image.thumbnail((self.settings.image_side, self.settings.image_side), Image.Resampling.LANCZOS)
        system = f"{request.system}\n\n{FORM}\n{json.dumps(request.answer.model_json_schema())}"
        content = [{"type": "image", "image": image} for image in images]
        return [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [*content, {"type": "text", "text": request.text}]},
        ]

    async def close(self) -> None:
        self.batches.close()
