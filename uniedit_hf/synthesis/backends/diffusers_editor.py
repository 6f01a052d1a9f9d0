"""Any diffusers pipeline that takes an image and a prompt, on this machine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence

from uniedit_hf.calls.messages import BackendError, EditRequest, EncodedImage, Reply, encoded
from uniedit_hf.calls.openai_chat import check_arguments
from uniedit_hf.synthesis.backends.batches import Batches
from uniedit_hf.synthesis.settings import DiffusersEditor


class DiffusersEditorBackend:
    """Pipelines have different parameters; each argument is passed if the pipeline has a parameter for it. Every image
    has its own generator, seeded by the request, so a batch gives the same images as single calls.

    Raises:
        BackendError: If there is no such pipeline, it takes no image, or it does not have one of `arguments`.
    """

    key = ""
    ratios: dict[str, float] = {}  # any
    OURS = ("generator", "height", "image", "num_images_per_prompt", "output_type", "prompt", "return_dict", "width")

    def __init__(self, name: str, settings: DiffusersEditor):
        import torch
        from diffusers import DiffusionPipeline

        self.settings = settings
        self.parameters = json.dumps(["diffusers", settings.model, settings.dtype, settings.arguments], sort_keys=True)
        try:
            self.pipeline = DiffusionPipeline.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
        except (OSError, ValueError, AttributeError) as error:
            first = str(error).strip().splitlines()[0]
            raise BackendError(f"The backend {name} cannot load {settings.model!r} ({first}): check model.") from error
        self.pipeline.to(settings.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.takes = set(inspect.signature(self.pipeline.__call__).parameters)
        missing = [each for each in ("image", "prompt") if each not in self.takes]
        if missing:
            raise BackendError(
                f"The backend {name}: {type(self.pipeline).__name__} takes no {missing[0]!r} but "
                f"{', '.join(sorted(self.takes))}: name a pipeline that edits images."
            )
        check_arguments(name, settings.arguments, self.takes, self.OURS)
        self.batches = Batches(self._replies, settings.batch_size, lambda request: (request.size, request.image.size))

    async def reply(self, request: EditRequest) -> Reply:
        return await self.batches.reply(request)

    def _replies(self, requests: Sequence[EditRequest]) -> list[Reply]:
        import torch

        width, height = requests[0].size
        images = [request.image.pixels() for request in requests]
        given = {
            "prompt": [request.prompt for request in requests],
            "generator": [torch.Generator().manual_seed(request.seed) for request in requests],
            "output_type": "pil",
        }
        if {"width", "height"} <= self.takes:
            given |= {"width": width, "height": height, "image": images}
        else:  # the pipeline draws in the size of the image it is given
            given["image"] = [image.resize((width, height)) for image in images]
        given = {name: value for name, value in given.items() if name in self.takes} | self.settings.arguments
        images = self.pipeline(**given).images
        return [Reply(self.settings.model, image=EncodedImage(encoded(image.convert("RGB")))) for image in images]

    async def close(self) -> None:
        self.batches.close()
