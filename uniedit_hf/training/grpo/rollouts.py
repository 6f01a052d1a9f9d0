"""Completions of prompts: images drawn and texts written by the model that is trained, many side by side.

All generations of a prompt are drawn behind one encoded context. Noise is a function of (seed, generation batch, row,
generation), so neither batching nor the number of devices changes a completion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch.utils._pytree import tree_map
from transformers import LogitsProcessor

from uniedit_hf.models.family import DrawnStep
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.pipeline_inputs import checked_settings
from uniedit_hf.randomness import derive_seed, torch_generator
from uniedit_hf.segments import Segment, TextSegment

from .prompt_rows import Prompt


@dataclass
class Completion:
    """An image or a text that was made for a prompt.

    Args:
        id: The id of the row, the generation batch and the generation.
        prompt: The prompt that it was made for.
        image: The image, if one was drawn.
        text: The text, if one was written.
        steps: The steps of a drawing that are learned from.
        token_ids: The tokens of a text, without the end marker.
        ended: Whether a text ends by itself.
    """

    id: str
    prompt: Prompt
    image: Image.Image | None = None
    text: str | None = None
    steps: list[DrawnStep] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ended: bool = True

    @property
    def segments(self) -> list[Segment]:
        """The segment after the prompt, in each of the samples that are learned from."""
        if self.image is not None:
            return [step.segment for step in self.steps]
        return [TextSegment(self.token_ids, loss=True)]


class Rollouts:
    """Makes completions.

    Args:
        model: The model itself, without a wrapper.
        processor: Its processor.
        args: A `UniEditGRPOConfig`.
        objective: The objective for drawings.

    Raises:
        ValueError: If a setting of drawings is not known or cannot be learned from.
    """

    def __init__(self, model, processor, args, objective: str | None):
        self.model, self.processor, self.args, self.objective = model, processor, args, objective
        given = args.generation_kwargs or {}
        given = json.loads(given) if isinstance(given, str) else dict(given)
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        self.settings = {} if objective is None else model.policy_settings(objective) | given
        if objective is not None:
            for each in self._requests([processor.default_size(model.config)], [0]):
                model.check_policy_settings(each, objective)

    @torch.no_grad()
    def complete(self, prompts: Sequence[Prompt], batch: int) -> list[Completion]:
        """`num_generations` completions of each prompt, in order.

        Args:
            prompts: The prompts of this process.
            batch: The number of the generation batch.
        """
        completions = [
            Completion(f"{prompt.id}#{batch}.{number}", prompt)
            for prompt in prompts
            for number in range(self.args.num_generations)
        ]
        was_training = self.model.training
        self.model.eval()
        for draws in (True, False):
            for part in self._side_by_side([each for each in completions if each.prompt.draws == draws]):
                self._draw(part) if draws else self._write(part)
        self.model.train(was_training)
        return completions

    def _side_by_side(self, completions: Sequence[Completion]) -> Iterator[Sequence[Completion]]:
        """Parts of at most `rollout_batch_size`, which hold whole prompts where they can."""
        group, most = self.args.num_generations, self.args.rollout_batch_size
        size = most if most < group else most // group * group
        for start in range(0, len(completions), size):
            yield completions[start : start + size]

    def _requests(self, sizes: Sequence[tuple[int, int]], seeds: Sequence[int]) -> list:
        known = UniEditPipeline(self.model, self.processor).known_settings
        settings = {"size": list(sizes), "seed": list(seeds)} | self.settings
        return checked_settings(self.model, known, len(sizes), settings)

    def _seed(self, completion: Completion) -> int:
        return derive_seed(self.args.draw_seed, "completion", completion.id) % 2**31

    def _to_device(self, features) -> dict[str, Any]:
        device = self.model.device
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, dict(features))

    def _draw(self, completions: Sequence[Completion]) -> None:
        """Draws the images of completions."""
        sizes = [each.prompt.size for each in completions]
        requests = self._requests(sizes, [self._seed(each) for each in completions])
        contexts = self._to_device(self.processor.guidance_contexts([each.prompt.condition for each in completions]))
        drawings = self.model.draw_to_learn(requests, objective=self.objective, **contexts)
        for completion, drawing in zip(completions, drawings):
            completion.image, completion.steps = self.processor.to_pil(drawing.pixels), drawing.steps

    def _write(self, completions: Sequence[Completion]) -> None:
        """Writes the texts of completions."""
        inputs = self._to_device(self.processor([each.prompt.condition for each in completions]))
        length, most = inputs["input_ids"].shape[1], self.args.max_completion_length
        draw = SeededSampling([self._seed(each) for each in completions], self.args.temperature)
        written = self.model.generate(
            **inputs, max_new_tokens=most, do_sample=False, logits_processor=[draw], use_cache=True
        )
        found = self.model.generation_config.eos_token_id
        ends = set(found) if isinstance(found, list) else {found}
        for completion, ids in zip(completions, written[:, length:].tolist()):
            place = next((place for place, token in enumerate(ids) if token in ends), None)
            completion.ended, completion.token_ids = place is not None, ids[:place]
            completion.text = self.processor.decode(completion.token_ids, skip_special_tokens=True).strip()


class SeededSampling(LogitsProcessor):
    """Draws from the distribution of each row by its own seed, whatever else is in the batch: the largest logit with
    Gumbel noise is a draw (Gumbel-max).

    Args:
        seeds: One for each row.
        temperature: The temperature of the distribution.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.generators = [torch_generator(seed, "text") for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = [torch.rand(scores.shape[1], generator=each, dtype=torch.float64) for each in self.generators]
        noise = -(-torch.stack(drawn).clamp(min=1e-300).log()).log()
        return (scores / self.temperature).double() + noise.to(scores.device)


def sample_of(completion: Completion, number: int):
    """The sample that part `number` of a completion is learned from."""
    condition = completion.prompt.condition
    name = completion.id if completion.image is None else f"{completion.id}/{number}"
    return replace(condition, id=name, segments=(*condition.segments, completion.segments[number]))
