"""`UniEditPipeline`: the one door to a tuned or released model. Edits, answers and drawings, one or many at a time."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from PIL import Image
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from uniedit_hf.models.loading import load_model, load_processor
from uniedit_hf.segments import ImageSegment, Sample, TextSegment


StepCallback = Callable[[int, int, list[torch.Tensor]], None]


class UniEditPipeline:
    """A model with its processor, and three verbs: `edit`, `answer`, `generate`.

    Every verb takes one request or lists of requests and returns one result or a list. Requests of a list may differ
    in size, length, seed and guidance; each result is what it would be alone.

    Args:
        model: A `BagelForConditionalGeneration` or a `JanusForConditionalGeneration`.
        processor: Its `BagelProcessor` or `JanusProcessor`.
        batch_size: How many requests run side by side.

    Raises:
        ValueError: If `batch_size` is less than 1.

    Example:
        >>> pipe = UniEditPipeline.from_pretrained("me/bagel-uniedit")
        >>> pipe.edit(image, "If the shop sign names a colour, repaint the door in it.")
        >>> pipe.answer(image, "What does the sign say?")
        >>> pipe.generate("a red lighthouse at dusk")
    """

    def __init__(self, model, processor, batch_size: int = 8):
        if batch_size < 1:
            raise ValueError(
                f"batch_size is {batch_size}, but at least one request must run at a time: use 1 or more."
            )
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, batch_size: int = 8, **kwargs) -> UniEditPipeline:
        """Loads a checkpoint of any layout from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            batch_size: How many requests run side by side.
            kwargs: What `from_pretrained` of the model takes: `dtype`, `device_map`, `quantization_config`,
                `subfolder="ema"`, `revision`, `token` ...

        Raises:
            OSError: If the folder or repository holds no checkpoint.
            ValueError: If its tensors and its configuration do not belong together.
        """
        model = load_model(pretrained_model_name_or_path, **kwargs)
        return cls(model, load_processor(pretrained_model_name_or_path, model.config, **kwargs), batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.model.device

    def to(self, *args, **kwargs) -> UniEditPipeline:
        """Moves the model, as `torch.nn.Module.to` does."""
        self.model.to(*args, **kwargs)
        return self

    # --- the three verbs ----------------------------------------------------------------------------------------

    def edit(
        self,
        image: Any | list,
        instruction: str | list[str],
        *,
        seed: int | list[int] | None = None,
        size: tuple[int, int] | list[tuple[int, int]] | None = None,
        source_views: Sequence[str] | None = None,
        text_guidance_scale: float | list[float] | None = None,
        image_guidance_scale: float | list[float] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings,
    ) -> Image.Image | list[Image.Image]:
        """Edits an image after an instruction.

        Args:
            image: What `uniedit_hf.images.open_image` takes, or a list.
            instruction: The instruction, or a list as long.
            seed: Of the noise; drawn at random if not given.
            size: (width, height) of the result; the source's, resized as in training, if not given.
            source_views: Which encoders see the source; all of the model's if not given.
            text_guidance_scale: How strongly the instruction guides; 1 does not. This and further settings have the
                defaults of the model's family, see `editing` of its `ImageSettings`.
            image_guidance_scale: How strongly the source guides; 1 does not.
            callback_on_step_end: Called after every step with its number, the number of steps and the latents.
            settings: Further fields of the model's `ImageSettings`, such as `num_timesteps`; each may be a list, and
                `num_timesteps` must be the same for all.

        Raises:
            ValueError: If a request is empty or a setting out of range; nothing is drawn then.
        """
        requests, many = _requests(image=image, instruction=instruction)
        if isinstance(source_views, str):
            raise ValueError(f"source_views is {source_views!r}, but must be a list of views: use [{source_views!r}].")
        views = self.processor.source_views if source_views is None else source_views
        samples, sizes = [], []
        for index, request in enumerate(requests):
            name = f"image {index}" if many else "image"
            source = self.processor.open_source(request["image"], name=name)
            text = _text(request["instruction"], f"instruction {index}" if many else "instruction")
            samples.append(Sample([*(ImageSegment(source, view) for view in views), TextSegment(text)]))
            sizes.append(self.processor.output_size(source))
        scales = {"text_guidance_scale": text_guidance_scale, "image_guidance_scale": image_guidance_scale}
        settings = self.model.image_settings.editing | _given(scales) | settings
        images = self._draw(samples, sizes if size is None else size, seed, settings, callback_on_step_end)
        return images if many else images[0]

    def generate(
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        size: tuple[int, int] | list[tuple[int, int]] | None = None,
        text_guidance_scale: float | list[float] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings,
    ) -> Image.Image | list[Image.Image]:
        """Draws an image after a prompt; arguments as in `edit`, `size` is the model's largest square by default.

        Raises:
            ValueError: If a prompt is empty or a setting out of range; nothing is drawn then.
        """
        requests, many = _requests(prompt=prompt)
        samples = [
            Sample([TextSegment(_text(request["prompt"], f"prompt {index}" if many else "prompt"))])
            for index, request in enumerate(requests)
        ]
        scales = {"text_guidance_scale": text_guidance_scale}
        settings = self.model.image_settings.drawing | _given(scales) | settings
        size = size or self.processor.default_size(self.model.config)
        images = self._draw(samples, size, seed, settings, callback_on_step_end)
        return images if many else images[0]

    def answer(
        self, image: Any | list, question: str | list[str], *, max_new_tokens: int = 512, **generate_kwargs
    ) -> str | list[str]:
        """Answers a question about an image.

        Args:
            image: What `uniedit_hf.images.open_image` takes, `None` for a question about nothing, or a list.
            question: The question, or a list as long.
            max_new_tokens: The longest answer.
            generate_kwargs: What `generate()` of transformers takes; greedy by default.

        Raises:
            ValueError: If a question is empty.
        """
        requests, many = _requests(image=image, question=question)
        samples = []
        for index, request in enumerate(requests):
            segments: list = []
            if request["image"] is not None:
                source = self.processor.open_source(request["image"], name=f"image {index}" if many else "image")
                segments.append(ImageSegment(source, self.processor.reading_view))
            text = _text(request["question"], f"question {index}" if many else "question")
            samples.append(Sample([*segments, TextSegment(text)]))
        generate_kwargs = {"do_sample": False} | generate_kwargs
        answers: list[str] = []
        for start in range(0, len(samples), self.batch_size):
            inputs = self._to_device(self.processor(samples[start : start + self.batch_size]))
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **generate_kwargs)
            written = output[:, inputs["input_ids"].shape[1] :]
            answers += self.processor.batch_decode(written, skip_special_tokens=True)
        answers = [answer.strip() for answer in answers]
        return answers if many else answers[0]

    # --- shared -------------------------------------------------------------------------------------------------

    def _draw(self, samples: list[Sample], size, seed, settings: dict, callback) -> list[Image.Image]:
        count = len(samples)
        requests = self._image_settings(count, {"size": size, "seed": seed} | settings)
        images = []
        for start in tqdm(range(0, count, self.batch_size), disable=count <= self.batch_size, desc="drawing"):
            batch = slice(start, start + self.batch_size)
            contexts = self._to_device(self.processor.guidance_contexts(samples[batch]))
            pixels = self.model.generate_images(requests[batch], callback_on_step_end=callback, **contexts)
            images += [self.processor.to_pil(each) for each in pixels]
        return images

    @property
    def known_settings(self) -> set[str]:
        """What `edit` and `generate` take beside their requests: `size` and the fields of the model's settings."""
        return {field.name for field in fields(self.model.image_settings)} - {"width", "height"} | {"size"}

    def _image_settings(self, count: int, settings: dict) -> list:
        """The model's `ImageSettings` of every request, all checked before anything is drawn."""
        known = self.known_settings
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"There is no setting {', '.join(unknown)}: choose from {', '.join(sorted(known))}.")
        columns = {name: _each(value, count, name) for name, value in settings.items()}
        requests = []
        for index in range(count):
            values = {name: column[index] for name, column in columns.items()}
            try:
                width, height = _size(values.pop("size"))
                seed = secrets.randbits(31) if values["seed"] is None else values["seed"]
                requests.append(self.model.image_settings(width=width, height=height, **values | {"seed": seed}))
                self.model.check_image_settings(requests[-1:])
            except ValueError as error:
                raise ValueError(f"Request {index}: {error}" if count > 1 else str(error)) from error
        self.model.check_image_settings(requests)
        return requests

    def _to_device(self, features) -> dict:
        return tree_map(lambda x: x.to(self.device) if isinstance(x, torch.Tensor) else x, dict(features))


def _requests(**columns) -> tuple[list[dict], bool]:
    """One dictionary per request; single values serve every request of a list."""
    lists = {name: value for name, value in columns.items() if isinstance(value, (list, tuple))}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The lists differ in length ({lengths}): give one value for every request.")
    if lists and not max(lengths.values()):
        raise ValueError(f"There is nothing to do: the list for {' and '.join(lengths)} is empty.")
    count = max(lengths.values(), default=1)
    requests = [{name: lists[name][i] if name in lists else columns[name] for name in columns} for i in range(count)]
    return requests, bool(lists)


def _given(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if value is not None}


def _each(value: Any, count: int, name: str) -> list:
    """A setting for every request: a list is taken as one value each, anything else serves all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} requests: give one value, or one for each.")
    return value


def _size(size: Any) -> tuple[int, int]:
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(edge, int) for edge in size)):
        raise ValueError(f"size is {size!r}, but must be two whole numbers of pixels: (width, height).")
    return tuple(size)


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        found = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise ValueError(f"The {name} is {found}: write what the model should do.")
    return text
