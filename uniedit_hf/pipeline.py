"""`UniEditPipeline`: edits, answers and drawings of a tuned or released model, one or many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from PIL import Image
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from uniedit_hf.conversations import conversation_sample
from uniedit_hf.models.card import pushed_card
from uniedit_hf.models.family import DrawingStep
from uniedit_hf.models.loading import inner_model, load_model, load_processor, merge_adapters
from uniedit_hf.models.offloading import offload
from uniedit_hf.pipeline_inputs import checked_settings, checked_text, given, one_for_each, request_list
from uniedit_hf.segments import UNDERSTANDING, ImageSegment, Sample, TextSegment
from uniedit_hf.streams import Event, stream_answer, stream_drawing
from uniedit_hf.thinking import ThinkingBudget, split_thoughts


# As in diffusers: the pipeline, the index of the step, its timestep, and the values that may be read or replaced.
StepCallback = Callable[["UniEditPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


class UniEditPipeline:
    """A model with its processor, and three verbs: `edit`, `answer`, `generate`.

    Every verb takes one request or lists of requests and returns one result or a list. Requests of a list may differ
    in size, length, seed and guidance; each result is the same as for a single request. `stream_edit`, `stream_answer`
    and
    `stream_generate` take one request and yield texts and previews as they come.

    With a `thinking_budget` the model first writes its reasoning, in at most that many tokens, as the reference does;
    `think` returns the reasoning itself.

    Args:
        model: A `BagelForConditionalGeneration` or a `JanusForConditionalGeneration`.
        processor: Its `BagelProcessor` or `JanusProcessor`.
        batch_size: Number of requests in one batch.

    Raises:
        ValueError: If `batch_size` is less than 1.

    Example:
        >>> pipe = UniEditPipeline.from_pretrained("me/bagel-uniedit")
        >>> pipe.edit(image, "If the shop sign names a color, repaint the door in it.")
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
        self.loaded_from: str | None = None
        self._interrupt = False
        self._bar_options: dict = {"disable": None}  # tqdm shows it only in terminals

    def __repr__(self) -> str:
        model = inner_model(self.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"UniEditPipeline({type(model).__name__}, {count:,} parameters, {model.dtype} on {self.device}, "
            f"batch_size={self.batch_size}, from {self.loaded_from!r})"
        )

    def set_progress_bar_config(self, **options) -> None:
        """Sets options of the tqdm bar over steps, as in diffusers: `disable=True` hides it, `disable=False` also
        shows it where there is no terminal.
        """
        self._bar_options = {"disable": None} | options

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, batch_size: int = 8, **kwargs) -> UniEditPipeline:
        """Loads a checkpoint of any layout from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            batch_size: Number of requests in one batch.
            kwargs: Arguments of the model's `from_pretrained`: `dtype`, `device_map`, `quantization_config`,
                `subfolder="ema"`, `revision`, `token` ...

        Raises:
            OSError: If the folder or repository contains no checkpoint.
            ValueError: If its tensors do not match its configuration.
        """
        model = load_model(pretrained_model_name_or_path, **kwargs)
        pipe = cls(model, load_processor(pretrained_model_name_or_path, model.config, **kwargs), batch_size)
        pipe.loaded_from = str(pretrained_model_name_or_path)
        return pipe

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        return self.model.device

    def to(self, *args, **kwargs) -> UniEditPipeline:
        """Moves the model, as `torch.nn.Module.to` does."""
        self.model.to(*args, **kwargs)
        return self

    def compile(self, layers: bool | None = True) -> UniEditPipeline:
        """Compiles the parts of the decoder's layers around attention, on first use and once for all sizes.

        Args:
            layers: Whether to compile; `None` (the default) compiles drawings of many steps on a GPU.

        Raises:
            ValueError: If the family cannot compile its layers.
        """
        model = inner_model(self.model)
        if not hasattr(model, "compile_layers"):
            raise ValueError(f"{type(model).__name__} has no layers that can be compiled: leave out compile().")
        model.compile_layers = layers
        return self

    def set_autoencoder(self, dtype: torch.dtype | None = None, tile: int | None = None) -> UniEditPipeline:
        """Runs BAGEL's autoencoder in 16 bit, or over tiles of large images, for less memory. Neither is exact.

        Args:
            dtype: dtype of the autoencoder, such as `torch.bfloat16`; fp32 by default.
            tile: Images with a longer side, in pixels, are cut into overlapping tiles of this size, such as 512; no
                tiles if not given.

        Raises:
            ValueError: If the family has no such autoencoder, or `tile` is not a multiple of 8.
        """
        model = inner_model(self.model)
        if not hasattr(model, "set_autoencoder"):
            raise ValueError(f"{type(model).__name__} has no autoencoder of latents: leave out set_autoencoder().")
        model.set_autoencoder(dtype, tile)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> UniEditPipeline:
        """Moves autoencoder, encoder and decoder to the GPU, or `device`, while each works; raises as `offload`."""
        offload(inner_model(self.model), device)
        return self

    def save_pretrained(self, folder) -> None:
        """Saves model and processor as `from_pretrained` reads them."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        **kwargs,
    ) -> CommitInfo:
        """Uploads model and processor, and a card that names their source unless the repository already has a card.

        Args:
            repo_id: `USER/NAME`; created if it does not exist.
            private: Whether a new repository is private.
            token: Hub token; defaults to the stored login.
            revision: Branch instead of `main`; created if it does not exist.
            commit_message: Message of the commit.
            kwargs: Arguments of huggingface_hub's `upload_folder`, such as `create_pr`.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        place = {"repo_id": repo_id, "revision": revision}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if not api.file_exists(filename="README.md", **place):
                base = inner_model(self.model).config.name_or_path or None
                adapted = bool(getattr(self.model, "peft_config", None))
                pushed_card(repo_id, self.loaded_from, base, adapted, token).save(Path(folder) / "README.md")
            return api.upload_folder(folder_path=folder, commit_message=commit_message, **place, **kwargs)

    def merge_adapters(self) -> UniEditPipeline:
        """Merges the loaded adapters into the model's weights.

        Raises:
            ValueError: If the model has no adapters.
        """
        self.model = merge_adapters(self.model)
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
        thinking_budget: int = 0,
        thoughts: str | list[str] | None = None,
        text_guidance_scale: float | list[float] | None = None,
        image_guidance_scale: float | list[float] | None = None,
        callback_on_step_end: StepCallback | None = None,
        streamer=None,
        **settings,
    ) -> Image.Image | list[Image.Image]:
        """Edits an image by an instruction.

        Args:
            image: Anything that `uniedit_hf.images.open_image` takes, or a list.
            instruction: The instruction, or a list of the same length.
            seed: Seed of the noise; random if not given.
            size: (width, height) of the result in pixels; by default the source's, resized as in training.
            source_views: Views of the source: `"understanding"`, `"drawing"` or both (the default), or the family's
                own names, such as `"vit"` and `"vae"`.
            thinking_budget: Maximum number of reasoning tokens before the drawing; 0 for no reasoning.
            thoughts: The reasoning itself, as returned by `think`, instead of `thinking_budget`.
            text_guidance_scale: Classifier-free guidance scale of the instruction; 1 disables it. Its default and
                those of further settings depend on the model's family, see `editing` of its `ImageSettings`.
            image_guidance_scale: Guidance scale of the source image; 1 disables it.
            callback_on_step_end: Called after every step, as in diffusers: (pipeline, index, timestep, kwargs), with a
                timestep for every request of the batch. `kwargs` has the `latents` of every request, `num_steps`, and
                `preview()`, which decodes the predicted final images. Returned latents replace the old ones, and
                `pipe._interrupt = True` stops the drawing.
            streamer: A streamer of transformers, which gets the thoughts of a single request.
            settings: Further fields of the model's `ImageSettings`, such as `num_timesteps`; each may be a list, and
                `num_timesteps` must be the same for all.

        Raises:
            ValueError: If a request is empty or a setting is out of range; nothing is drawn then."""
        samples, many = self._samples(image, instruction, "instruction", self._views(source_views))
        size = size or [self.processor.output_size(sample.segments[0].image) for sample in samples]
        scales = {"text_guidance_scale": text_guidance_scale, "image_guidance_scale": image_guidance_scale}
        settings = self.model.image_settings.editing | given(scales) | settings
        requests = checked_settings(
            self.model, self.known_settings, len(samples), {"size": size, "seed": seed} | settings
        )
        samples, thoughts = self._with_thoughts(samples, thoughts, thinking_budget, streamer)
        images = self._draw(samples, requests, thoughts, callback_on_step_end)
        return images if many else images[0]

    def generate(
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        size: tuple[int, int] | list[tuple[int, int]] | None = None,
        thinking_budget: int = 0,
        thoughts: str | list[str] | None = None,
        text_guidance_scale: float | list[float] | None = None,
        callback_on_step_end: StepCallback | None = None,
        streamer=None,
        **settings,
    ) -> Image.Image | list[Image.Image]:
        """Draws an image for a prompt; arguments as in `edit`, `size` is the model's largest square by default.

        Raises:
            ValueError: If a prompt is empty or a setting out of range; nothing is drawn then.
        """
        samples, many = self._samples(None, prompt, "prompt", ())
        scales = {"text_guidance_scale": text_guidance_scale}
        settings = self.model.image_settings.drawing | given(scales) | settings
        size = size or self.processor.default_size(self.model.config)
        requests = checked_settings(
            self.model, self.known_settings, len(samples), {"size": size, "seed": seed} | settings
        )
        samples, thoughts = self._with_thoughts(samples, thoughts, thinking_budget, streamer)
        images = self._draw(samples, requests, thoughts, callback_on_step_end)
        return images if many else images[0]

    def answer(
        self,
        image: Any | list,
        question: str | list[str],
        *,
        max_new_tokens: int = 512,
        thinking_budget: int = 0,
        **generate_kwargs,
    ) -> str | list[str]:
        """Answers a question about an image.

        Args:
            image: Anything that `uniedit_hf.images.open_image` takes, `None` for a question without an image, or a
                list; within a list, a list gives several images for one question.
            question: The question, or a list of the same length.
            max_new_tokens: Maximum number of tokens in an answer.
            thinking_budget: Maximum number of reasoning tokens before the answer, not counted in `max_new_tokens`; 0
                for no reasoning.
            generate_kwargs: Arguments of transformers' `generate()`, including `streamer`; greedy by default.

        Raises:
            ValueError: If a question is empty.
        """
        samples, many = self._samples(image, question, "question", (UNDERSTANDING,))
        if thinking_budget:
            samples = [self._with_thinking_prompt(sample, "answer") for sample in samples]
        answers = [answer for _, answer in self._write(samples, max_new_tokens, thinking_budget, generate_kwargs)]
        return answers if many else answers[0]

    def chat(
        self, messages: list[dict] | list[list[dict]], *, max_new_tokens: int = 512, thinking_budget: int = 0, **kwargs
    ) -> str | list[str]:
        """Answers a conversation with texts and images in any order; `answer` is for one question after images.

        Args:
            messages: One conversation, or a list of them; see `uniedit_hf.conversations.conversation_sample`.
            max_new_tokens: As in `answer`.
            thinking_budget: As in `answer`.
            kwargs: Arguments of transformers' `generate()`; greedy by default.

        Raises:
            ValueError: If a conversation is empty, or a message does not have the form described there.
        """
        many = bool(messages) and isinstance(messages[0], list)
        conversations = messages if many else [messages]
        samples = [conversation_sample(each, self.processor.open_source) for each in conversations]
        if thinking_budget:
            samples = [self._with_thinking_prompt(sample, "answer") for sample in samples]
        answers = [answer for _, answer in self._write(samples, max_new_tokens, thinking_budget, kwargs)]
        return answers if many else answers[0]

    def think(
        self,
        image: Any | list,
        text: str | list[str],
        *,
        max_new_tokens: int = 1024,
        source_views: Sequence[str] | None = None,
        **generate_kwargs,
    ) -> str | list[str]:
        """Writes the model's reasoning before a drawing: the `thoughts` for `edit`, or for `generate` if `image` is
        `None`.

        Args:
            image: As in `edit`, or `None`.
            text: The instruction or prompt, or a list of the same length.
            max_new_tokens: Maximum number of tokens, including the tags.
            source_views: As in `edit`.
            generate_kwargs: Arguments of transformers' `generate()`; greedy by default.

        Raises:
            ValueError: If a text is empty, or the family has no thinking prompt.
        """
        samples, many = self._samples(image, text, "text", self._views(source_views))
        samples = [self._with_thinking_prompt(sample, "draw") for sample in samples]
        thoughts = [text for text, _ in self._write(samples, max_new_tokens, 0, generate_kwargs)]
        return thoughts if many else thoughts[0]

    # --- the same as streams ------------------------------------------------------------------------------------

    def stream_edit(self, image: Any, instruction: str, *, num_previews: int = 8, **settings) -> Iterator[Event]:
        """Like `edit` for one request, but yields `TextPiece`s of reasoning, `Preview`s, and at the end `Finished`;
        closing the generator stops the work at the next token or step.

        Args:
            image: As in `edit`.
            instruction: As in `edit`.
            num_previews: Number of previews, evenly spaced.
            settings: Further arguments of `edit`, except for its callback and streamer.

        Raises:
            ValueError: As in `edit`, when the first event is requested.
        """
        request = {"image": image, "instruction": instruction} | settings
        return stream_drawing(self.edit, self._decode, self.processor.to_pil, num_previews, **request)

    def stream_generate(self, prompt: str, *, num_previews: int = 8, **settings) -> Iterator[Event]:
        """Like `generate` for one request, with the events of `stream_edit`."""
        request = {"prompt": prompt} | settings
        return stream_drawing(self.generate, self._decode, self.processor.to_pil, num_previews, **request)

    def stream_answer(self, image: Any, question: str, **settings) -> Iterator[Event]:
        """Like `answer` for one request, but yields `TextPiece`s of reasoning and answer, then `Finished`."""
        return stream_answer(self.answer, self._decode, image=image, question=question, **settings)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids, skip_special_tokens=True)

    # --- writing ------------------------------------------------------------------------------------------------

    def _views(self, source_views: Sequence[str] | None) -> tuple[str, ...]:
        """The views of a source in the order of the model's family; all by default."""
        if source_views is None:
            return tuple(self.processor.view_names)
        if isinstance(source_views, str):
            raise ValueError(f"source_views is {source_views!r}, but must be a list of views: use [{source_views!r}].")
        if not source_views:
            raise ValueError(
                "source_views is empty, so the model would not see the image: name a view, or leave it out."
            )
        return self.processor.make_conditioning(source_views=source_views).source_views

    def _samples(self, image: Any, text: Any, name: str, views: tuple[str, ...]) -> tuple[list[Sample], bool]:
        """A sample for every request, with its image opened and its text checked, and whether the requests were a
        list.
        """
        drawn = {"prompt": text} if name == "prompt" else {"image": image, name: text}
        requests, many = request_list(**drawn)
        samples = []
        for index, request in enumerate(requests):
            segments: list = []
            if name == "instruction" or request.get("image") is not None:
                image = request["image"]
                for each in image if name == "question" and isinstance(image, list) else [image]:
                    opened = self.processor.open_source(each, name=f"image {index}" if many else "image")
                    segments += [ImageSegment(opened, view) for view in views]
            words = checked_text(request[name], f"{name} {index}" if many else name)
            samples.append(Sample([*segments, TextSegment(words)]))
        return samples, many

    def _with_thinking_prompt(self, sample: Sample, purpose: str) -> Sample:
        """The sample after the prompt that asks the model to think before it answers or draws."""
        prompts = self.processor.thinking_prompts
        if prompts is None:
            raise ValueError(
                f"{type(self.processor).__name__} cannot be asked for thoughts: leave out thinking_budget."
            )
        return sample.with_segments([TextSegment(prompts[purpose]), *sample.segments])

    def _with_thoughts(self, samples: list[Sample], thoughts, budget: int, streamer) -> tuple[list[Sample], list]:
        """The samples to draw from, and the reasoning that was written for each."""
        if thoughts is not None and budget:
            raise ValueError("thoughts and thinking_budget are both given: give the thoughts, or have them written.")
        if thoughts is None and not budget:
            return samples, []
        samples = [self._with_thinking_prompt(sample, "draw") for sample in samples]
        if thoughts is not None:
            return samples, one_for_each(thoughts, len(samples), "thoughts")
        options = {} if streamer is None else {"streamer": streamer}
        return samples, [text for text, _ in self._write(samples, budget, 0, options)]

    def _write(
        self, samples: list[Sample], max_new_tokens: int, budget: int, generate_kwargs: dict
    ) -> list[tuple[str, str]]:
        """The text that the model writes after every sample, with and without the reasoning."""
        generate_kwargs = {"do_sample": False} | generate_kwargs
        processors = generate_kwargs.get("logits_processor") or []
        texts = []
        for start in range(0, len(samples), self.batch_size):
            inputs = self._to_device(self.processor(samples[start : start + self.batch_size]))
            length, most = inputs["input_ids"].shape[1], max_new_tokens
            if budget:
                thinking = ThinkingBudget(self.processor.tokenizer, length, budget)
                generate_kwargs |= {"logits_processor": [*processors, thinking]}  # last, so that nothing overrides it
                most += budget + len(thinking.close_ids)
            output = self.model.generate(**inputs, max_new_tokens=most, **generate_kwargs)
            texts += self.processor.batch_decode(output[:, length:], skip_special_tokens=True)
        return [(text.strip(), split_thoughts(text)[1] if budget else text.strip()) for text in texts]

    # --- shared -------------------------------------------------------------------------------------------------

    def _draw(self, samples: list[Sample], requests: list, thoughts: list, callback) -> list[Image.Image]:
        images, starts = [], range(0, len(samples), self.batch_size)
        self._interrupt = False
        with tqdm(**{"desc": "drawing", "unit": "step"} | self._bar_options) as bar:
            for start in starts:
                batch = slice(start, start + self.batch_size)
                options = {"thoughts": thoughts[batch]} if thoughts else {}
                contexts = self._to_device(self.processor.guidance_contexts(samples[batch], **options))
                watched = callback is not None or not bar.disable
                watch = self._step_callback(callback, bar, len(starts)) if watched else None
                pixels = self.model.generate_images(requests[batch], callback_on_step_end=watch, **contexts)
                images += [self.processor.to_pil(each) for each in pixels]
        return images

    @property
    def known_settings(self) -> set[str]:
        """Arguments of `edit` and `generate` besides the requests: `size` and the fields of the model's settings."""
        return {field.name for field in fields(self.model.image_settings)} - {"width", "height"} | {"size"}

    def _step_callback(
        self, callback: StepCallback | None, bar: tqdm, num_batches: int
    ) -> Callable[[DrawingStep], None]:
        """Wraps a callback in the form of diffusers for the model; also updates the progress bar."""

        def watch(step: DrawingStep) -> None:
            bar.total = step.total * num_batches
            bar.update()
            if callback is None:
                return
            shown = {"latents": step.latents, "num_steps": step.total, "preview": step.preview}
            changed = callback(self, step.number - 1, torch.tensor(step.times), shown) or {}
            step.latents[:] = changed.get("latents", step.latents)
            step.stop = self._interrupt

        return watch

    def _to_device(self, features) -> dict:
        return tree_map(lambda x: x.to(self.device) if isinstance(x, torch.Tensor) else x, dict(features))
