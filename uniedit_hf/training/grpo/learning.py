"""Completions with advantages to the batches of the steps that learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from uniedit_hf.models.loading import inner_model
from uniedit_hf.models.workload import workload
from uniedit_hf.segments import Sample, TextSegment

from ..data import PackNotes
from .objectives import Hyperparameters, Learned, Objective, Recorder
from .rollouts import Completion, sample_of


class LearningBatches:
    """Makes batches out of completions.

    Args:
        trainer: A `UniEditGRPOTrainer`.
        objective: The objective for drawings.
        hyperparameters: The hyperparameters of the objectives.
    """

    def __init__(self, trainer, objective: str | None, hyperparameters: Hyperparameters):
        self.trainer, self.args = trainer, trainer.args
        self.objective, self.hyperparameters = objective, hyperparameters

    def batches(
        self, completions: Sequence[Completion], advantages: Sequence[float], number: int
    ) -> list[list[dict[str, Any]]]:
        """The batches of each optimizer step of a generation batch, one for each accumulation.

        Completions whose advantage is 0 teach nothing and are left out. Outcomes before the update, which later steps
        compare with, and those of the reference are computed here, while the weights are still those that drew.

        Args:
            completions: The completions of this process, by prompt.
            advantages: The advantage of each completion.
            number: The number of the generation batch.
        """
        per_step = len(completions) // self.args.steps_per_generation
        steps = []
        for iteration in range(self.args.num_iterations):
            for start in range(0, len(completions), per_step):
                chosen = [
                    each for each in zip(completions[start:], advantages[start : start + per_step]) if each[1] != 0
                ]
                steps.append(self._step(chosen, number * self.args.num_iterations + iteration, len(steps) == 0))
        self._record(steps)
        return steps

    def _step(self, chosen: Sequence[tuple[Completion, float]], epoch: int, is_first: bool) -> list[dict[str, Any]]:
        singles = [
            self._single(completion, part, advantage, epoch)
            for completion, advantage in chosen
            for part in range(len(completion.segments))
        ]
        return [self._batch(share, epoch, is_first) for share in self._dealt(singles)]

    def _single(self, completion: Completion, part: int, advantage: float, epoch: int) -> tuple[dict, Learned]:
        """One sample as a pack of its own, with what is learned from it."""
        sample = sample_of(completion, part)
        features = dict(self.trainer.reader.processor.pack([sample], self.args.draw_seed, epoch, self.args.posterior))
        features["id"] = sample.id
        if completion.image is None:
            rows = features["num_text_targets"]
            learned = Learned(sample.id, "grpo", True, rows, advantage, num_decisions=rows - (not completion.ended))
        else:
            step, rows = completion.steps[part], features["num_image_targets"]
            learned = Learned(
                sample.id, self.objective, False, rows, advantage, action=step.action, drawn=step.log_probs
            )
        return features, learned

    def _dealt(self, singles: Sequence[tuple[dict, Learned]]) -> list[list[tuple[dict, Learned]]]:
        """Samples over the batches of a step, the longest first, each to the batch with the fewest tokens.

        Raises:
            ValueError: A batch would be longer than the settings allow.
        """
        shares: list[list] = [[] for _ in range(self.args.gradient_accumulation_steps)]
        tokens = [0] * len(shares)
        for number in sorted(range(len(singles)), key=lambda each: -_length(singles[each])):
            least = tokens.index(min(tokens))
            shares[least].append(number)
            tokens[least] += _length(singles[number])
        most = self.args.max_tokens_per_pack * self.args.per_device_train_batch_size
        if max(tokens) > most:
            raise ValueError(
                f"A step has {max(tokens):,} tokens in a batch, and max_tokens_per_pack is {most:,}: raise "
                "gradient_accumulation_steps or max_tokens_per_pack, or lower generation_batch_size."
            )
        return [[singles[number] for number in sorted(share)] for share in shares]

    def _batch(self, share: Sequence[tuple[dict, Learned]], epoch: int, is_first: bool) -> dict[str, Any]:
        """A batch as the trainer takes it: one pack, its notes, and the criterion that learns from it."""
        processor = self.trainer.reader.processor
        packs, learned = [dict(pack) for pack, _ in share], [each for _, each in share]
        ids = [pack.pop("id") for pack in packs]
        if not packs:  # a process without samples still takes part in the step
            packs = [dict(processor.pack([Sample([TextSegment([])])], self.args.draw_seed, epoch, "mean"))]
        features = dict(processor.merge(packs))
        name = f"of generation batch {epoch}"
        features["pack"] = [PackNotes(name, epoch, ids, features["input_ids"].shape[1], workload(features))]
        features["num_text_targets"] = sum(each.is_text for each in learned)
        features["num_image_targets"] = len(learned) - features["num_text_targets"]
        tolerance = self.args.ratio_tolerance if is_first else None
        model = inner_model(self.trainer.model)
        features["criterion"] = Objective(learned, model, self.hyperparameters, self.trainer.sums, tolerance)
        return features

    # --- before the update --------------------------------------------------------------------------------------

    def _record(self, steps: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Computes what the updates are compared with. Every process runs every batch, also one without samples."""
        trainer = self.trainer
        for number, step in enumerate(steps):
            for batch in step:
                if number:
                    self._keep(batch, trainer.model_wrapped, "old", nullcontext())
                if self.args.beta and trainer.reference is not None:
                    self._keep(batch, trainer.reference, "reference", nullcontext())
                elif self.args.beta:
                    self._keep(batch, trainer.model_wrapped, "reference", trainer.model.disable_adapter())

    @torch.no_grad()
    def _keep(self, batch: dict[str, Any], model, name: str, context) -> None:
        """Keeps the outcomes of a batch in its samples."""
        learned = batch["criterion"].learned
        recorder = Recorder(learned, inner_model(self.trainer.model), self.args.temperature)
        features = {key: value for key, value in batch.items() if not key.startswith("num_") and key != "pack"}
        inputs = self.trainer._prepare_inputs(features | {"criterion": recorder})
        with context, self.trainer.compute_loss_context_manager():
            model(**inputs)
        for each, outcome in zip(learned, recorder.outcomes):
            setattr(each, name, outcome)


def _length(single: tuple[dict, Learned]) -> int:
    return single[0]["input_ids"].shape[1]
