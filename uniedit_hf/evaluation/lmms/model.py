"""`--model uniedit` of lmms-eval: BAGEL and Janus-Pro through `UniEditPipeline`, to answer, to draw or to edit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm.auto import tqdm

from uniedit_hf.evaluation import running
from uniedit_hf.evaluation.items import Item
from uniedit_hf.evaluation.suites import suite
from uniedit_hf.pipeline import UniEditPipeline


MODES = ("understanding", "generate", "edit")
PRESETS = ("bagel", "uniedit", "model")
# tasks of lmms-eval and ours -> the suite of ours with presets for them
SUITE_OF = {
    "geneval": "geneval", "rise": "rise", "WISE": "wise", "imgedit": "imgedit", "gedit_bench": "gedit",
    "kris_bench": "kris",
}  # fmt: skip
WRITING = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "thinking_budget")
# lmms-eval adds this stop to every task without stops, which would cut an answer of two paragraphs
ADDED_STOP = "\n\n"


class UniEdit(lmms):
    """A model of any family, in one of three modes.

    Answers are texts. Drawings and edits are files in `output_dir/TASK/images`, and the reply is
    `{"text": "", "images": [PATH]}`, as lmms-eval's image tasks expect it; existing files are kept.

    A task or `--gen_kwargs` may set the options of `generate()` in `WRITING`, `until`, `vit_size` (the sizes of
    BAGEL's ViT view), and for images every setting of the pipeline.

    Args:
        pretrained: Folder or Hub id.
        mode: `understanding`, `generate` or `edit`.
        output_dir: Folder for images; required except for `understanding`.
        preset: Preset of drawing settings, as in `uniedit evaluate`, for tasks that are among its suites.
        seed: Seed of the drawings.
        dtype: dtype of the weights.
        batch_size: Requests in one batch; `--batch_size` of lmms-eval.
        device: The device to run on; that of the process by default.
        max_batch_size: Passed by lmms-eval, not used.

    Raises:
        ValueError: If mode or preset is unknown, or `output_dir` is missing.
    """

    is_simple = True

    def __init__(
        self, pretrained: str, mode: str = "understanding", output_dir: str | None = None, preset: str = "bagel",
        seed: int = 0, dtype: str = "auto", batch_size: int | str = 1, device: str | None = None,
        max_batch_size: int | None = None,
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (("mode", mode, MODES), ("preset", preset, PRESETS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}.")
        if mode != "understanding" and output_dir is None:
            raise ValueError(f"mode={mode} makes images: name a folder for them as output_dir in --model_args.")
        if not str(batch_size).isdigit():
            raise ValueError(f"batch_size is {batch_size!r}, but this model takes a number.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = device or str(self.accelerator.device)
        self.pretrained, self.mode, self.preset, self.seed = pretrained, mode, preset, int(seed)
        self.output_dir = output_dir and Path(output_dir)
        self.pipeline = UniEditPipeline.from_pretrained(pretrained, batch_size=int(batch_size), dtype=dtype)
        self.pipeline.to(self.device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer, or JSON with the path of an image, for every request."""
        act = self._answered if self.mode == "understanding" else self._drawn
        replies: list[str] = []
        with tqdm(total=len(requests), desc=self.mode, disable=self.rank > 0) as bar:
            for (task, settings), group in groupby(requests, key=_task_and_settings):
                for reply in act(task, json.loads(settings), list(group)):
                    replies.append(reply)
                    bar.update()
        return replies

    def loglikelihood(self, requests):
        raise NotImplementedError(
            f"{_task(requests)} asks for likelihoods, but uniedit only generates: choose another task."
        )

    def generate_until_multi_round(self, requests):
        raise NotImplementedError(
            f"{_task(requests)} asks in several rounds, but uniedit answers once: choose another."
        )

    # --- answers ------------------------------------------------------------------------------------------------

    def _answered(self, task: str, settings: dict, requests: Sequence[Instance]) -> Iterator[str]:
        options = _options(settings)
        with self._seen_in(settings.get("vit_size")):
            for start in range(0, len(requests), self.pipeline.batch_size):
                batch = requests[start : start + self.pipeline.batch_size]
                images, questions = [self._visuals(each) or None for each in batch], [each.args[0] for each in batch]
                for text in self.pipeline.answer(images, questions, **options):
                    yield _cut(text, settings.get("until"))

    @contextmanager
    def _seen_in(self, vit_size: dict | None):
        """A context in which BAGEL's ViT view has these sizes; Janus-Pro has one size."""
        images = self.pipeline.processor.image_processor
        if vit_size is None or not hasattr(images, "vit_size"):
            yield
            return
        usual, images.vit_size = images.vit_size, vit_size
        try:
            yield
        finally:
            images.vit_size = usual

    def _visuals(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual else []
        for visual in visuals or []:
            if not isinstance(visual, Image.Image):
                raise ValueError(
                    f"Row {doc_id} of {task} shows a {type(visual).__name__}, but uniedit only reads images."
                )
        return list(visuals or [])

    # --- images -------------------------------------------------------------------------------------------------

    def _drawn(self, task: str, settings: dict, requests: Sequence[Instance]) -> Iterator[str]:
        drawing = self._drawing(task, settings)
        folder = self.output_dir / task
        running.open_run(folder, {"task": task, "model": self.pretrained, "seed": self.seed, "mode": self.mode,
                                  "drawing": json.loads(json.dumps(drawing))})  # fmt: skip
        items = [self._item(request) for request in requests]
        running.draw(self.pipeline, items, [self.seed], folder, drawing)
        for item in items:
            path = running.picture_path(folder, item, self.seed)
            yield json.dumps({"text": "", "images": [str(path)]})

    def _drawing(self, task: str, settings: dict) -> dict:
        """The preset's settings for the task, overridden by the task and the command line."""
        known = self.pipeline.known_settings | {"thinking_budget", "source_views"}
        given = {name: value for name, value in settings.items() if name in known}
        if task not in SUITE_OF or self.preset == "model":
            return given
        return suite(SUITE_OF[task]).SETTINGS[self.preset] | given

    def _item(self, request: Instance) -> Item:
        prompt, doc_id = request.args[0], request.args[3]
        name = f"{doc_id:05d}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        return Item(name, prompt, {}, [partial(self._source, request)] if self.mode == "edit" else ())

    def _source(self, request: Instance) -> Image.Image:
        visuals = self._visuals(request)
        if len(visuals) != 1:
            _, _, _, doc_id, task, _ = request.args
            raise ValueError(f"Row {doc_id} of {task} has {len(visuals)} source images, but uniedit edits one.")
        return visuals[0]


def _task_and_settings(request: Instance) -> tuple[str, str]:
    return request.args[4], json.dumps(request.args[1], sort_keys=True, default=str)


def _task(requests: Sequence[Instance]) -> str:
    return requests[0].task_name or "This task"


def _options(settings: dict) -> dict:
    """Arguments of `UniEditPipeline.answer` from a task's settings; greedy unless they ask for sampling."""
    options = {name: settings[name] for name in WRITING if settings.get(name) is not None}
    options |= {"do_sample": settings.get("do_sample", bool(settings.get("temperature")))}
    if not options["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            options.pop(name, None)
    return options


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to the first of the stops."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop != ADDED_STOP:
            text = text.partition(stop)[0]
    return text.strip()
