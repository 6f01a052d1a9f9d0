"""Runs the jobs of a batch in one call of the pipeline, and sends each its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LogitsProcessorList, StoppingCriteriaList

from uniedit_hf import UniEditPipeline
from uniedit_hf.streams import Preview
from uniedit_hf.thinking import CLOSE, split_thoughts

from .answer_rows import AnswerRow, RowChoices, RowEnds
from .batcher import Stopped
from .job import Job, Outcome, Writing
from .prometheus import Metrics


class Runner:
    """Runs batches.

    Args:
        pipe: The pipeline.
        metrics: Receives the figures.
    """

    def __init__(self, pipe: UniEditPipeline, metrics: Metrics):
        self.pipe, self.metrics = pipe, metrics

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Runs jobs of one kind.

        Raises:
            Stopped: When every client has left.
            ValueError: If the pipeline refuses a request.
        """
        self.metrics.tokens.labels("read").inc(sum(job.prompt_tokens for job in jobs))
        if isinstance(jobs[0].asked, Writing):
            self._write(jobs)
        else:
            self._draw(jobs)

    # --- drawings -----------------------------------------------------------------------------------------------

    def _draw(self, jobs: Sequence[Job]) -> None:
        asked = [job.asked for job in jobs]
        texts, images = [each.text for each in asked], [each.image for each in asked]
        options: dict[str, Any] = {name: [each.settings[name] for each in asked] for name in asked[0].settings}
        views = {"source_views": asked[0].source_views} if asked[0].verb == "edit" else {}
        thoughts, lengths = [""] * len(jobs), [0] * len(jobs)
        if asked[0].thinking_budget:
            thoughts, lengths = self._think(jobs, texts, images, views)
            options["thoughts"] = thoughts
        options["callback_on_step_end"] = _Watch(jobs)
        if asked[0].verb == "edit":
            drawn = self.pipe.edit(images, texts, **options, **views)
        else:
            drawn = self.pipe.generate(texts, **options)
        self.metrics.images.inc(len(drawn))
        for job, image, thought, length in zip(jobs, drawn, thoughts, lengths):
            tokens = job.tokens - job.prompt_tokens - job.asked.thinking_budget + length
            job.tell(Outcome(image, split_thoughts(thought)[0] or thought, tokens))

    def _think(self, jobs: Sequence[Job], texts: list[str], images: list, views: dict) -> tuple[list[str], list[int]]:
        """The reasoning before all drawings, each within its own budget, and the numbers of tokens."""
        rows = [self._row(job, job.asked.thinking_budget) for job in jobs]
        longest = max(row.longest for row in rows)
        about = None if images[0] is None else images
        thoughts = self.pipe.think(about, texts, max_new_tokens=longest, stopping_criteria=_criteria(rows), **views)
        return thoughts, [len(row.ids) for row in rows]

    # --- answers ------------------------------------------------------------------------------------------------

    def _write(self, jobs: Sequence[Job]) -> None:
        budget = jobs[0].asked.thinking_budget
        close = len(self.pipe.processor.tokenizer(CLOSE, add_special_tokens=False)["input_ids"]) if budget else 0
        rows = [self._row(job, job.asked.max_new_tokens + budget + close) for job in jobs]
        options = {"stopping_criteria": _criteria(rows)}
        if any(job.asked.temperature or job.asked.grammar for job in jobs):
            options["logits_processor"] = LogitsProcessorList([RowChoices(rows)])
        self.pipe.chat(
            [job.asked.messages for job in jobs],
            max_new_tokens=max(job.asked.max_new_tokens for job in jobs),
            thinking_budget=budget,
            **options,
        )
        for row in rows:
            thoughts, answer = split_thoughts(row.decode(row.ids))
            self.metrics.tokens.labels("written").inc(len(row.ids))
            row.finish(answer, thoughts)

    def _row(self, job: Job, longest: int) -> AnswerRow:
        end = self.pipe.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end]) - {None}
        return AnswerRow(job, lambda ids: self.pipe.processor.decode(ids, skip_special_tokens=True), ends, longest)


def _criteria(rows: Sequence[AnswerRow]) -> StoppingCriteriaList:
    return StoppingCriteriaList([RowEnds(rows)])


class _Watch:
    """Called after every step of a drawing: sends previews to the jobs that asked for them, and stops when every
    client has disconnected.
    """

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs

    def __call__(self, pipe: UniEditPipeline, index: int, timestep, callback_kwargs: dict[str, Any]) -> dict:
        if all(job.gone for job in self.jobs):
            raise Stopped
        step, steps = index + 1, callback_kwargs["num_steps"]
        shown = [job.asked.num_previews for job in self.jobs]
        due = [step < steps and step * (n + 1) // steps != index * (n + 1) // steps for n in shown]
        if any(due):
            pixels = callback_kwargs["preview"]()
            for job, now, each in zip(self.jobs, due, pixels):
                if now:
                    job.tell(Preview(step, steps, pipe.processor.to_pil(each)))
        return {}
