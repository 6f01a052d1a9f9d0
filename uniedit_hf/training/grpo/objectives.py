"""Objectives that learn from completions with advantages: criteria over the predictions of a pack.

`"grpo"` (arXiv 2402.03300; of drawings by a flow, 2505.05470) raises the probability of decisions whose completion was
better than the others of its prompt. `"nft"` (DiffusionNFT, 2509.16117) needs no probabilities: it moves the velocity
toward finished images that were better, and away from those that were worse.

Shapes: N rows of a sample, C channels of a velocity, D decisions of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from uniedit_hf.losses import Losses
from uniedit_hf.models.family import PackPredictions


@dataclass
class Learned:
    """A sample of a pack that is learned from: a text, or a step of a drawing.

    Args:
        id: For messages.
        objective: `"nft"` or `"grpo"`.
        is_text: Whether it is a text.
        num_rows: How many supervised tokens it has in the pack.
        advantage: The advantage of its completion.
        action: The action of a step of a drawing, for the model's `action_log_probs`.
        num_decisions: For a text, how many tokens the model chose: all, or all but the end marker if the text was cut.
        drawn: Log-probabilities (D,) when it was drawn, if they are known.
        old: The outcome before the update: velocities (N, C) or log-probabilities (D,); `None` if this is the first
            update on it.
        reference: The outcome of the reference model, if there is one.
    """

    id: str
    objective: str
    is_text: bool
    num_rows: int
    advantage: float
    action: Any = None
    num_decisions: int = 0
    drawn: torch.Tensor | None = None
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None


@dataclass(frozen=True)
class Hyperparameters:
    """Those of the objectives, as `UniEditGRPOConfig` has them."""

    beta: float
    epsilon_text: float
    epsilon_image: float
    temperature: float
    nft_strength: float
    advantage_clip: float


@dataclass
class Rows:
    """The predictions of a pack at the rows of one sample. An image has `predicted`, `targets` and their `times`.
    A text has logits and labels."""

    predicted: torch.Tensor
    targets: torch.Tensor
    times: torch.Tensor | None = None


def rows_of(learned: Sequence[Learned], predictions: PackPredictions) -> Iterator[tuple[Learned, Rows]]:
    """Every sample of a pack with its rows."""
    text = image = 0
    for each in learned:
        if each.is_text:
            here = slice(text, text := text + each.num_rows)
            yield each, Rows(predictions.text_logits[here], predictions.text_labels[here])
        else:
            here = slice(image, image := image + each.num_rows)
            times = None if predictions.image_times is None else predictions.image_times[here]
            yield each, Rows(predictions.image[here], predictions.image_targets[here], times)


def outcome_of(learned: Learned, rows: Rows, model, temperature: float) -> torch.Tensor:
    """The values that an update changes: velocities (N, C) for `"nft"`, else log-probabilities of decisions (D,)."""
    if learned.is_text:
        likely = (rows.predicted / temperature).log_softmax(-1)
        return likely.gather(1, rows.targets[:, None])[: learned.num_decisions, 0]
    if learned.objective == "nft":
        return rows.predicted
    return model.action_log_probs(rows.predicted, learned.action)


class Recorder:
    """A criterion that keeps the outcomes of a pack and learns nothing.

    Args:
        learned: The samples of the pack.
        model: The model that predicts.
        temperature: The temperature of texts.
    """

    def __init__(self, learned: Sequence[Learned], model, temperature: float):
        self.learned, self.model, self.temperature = learned, model, temperature
        self.outcomes: list[torch.Tensor] = []

    def __call__(self, predictions: PackPredictions) -> Losses:
        self.outcomes = [
            outcome_of(*each, self.model, self.temperature).detach() for each in rows_of(self.learned, predictions)
        ]
        nothing = predictions.image.detach().new_zeros(())
        return Losses(nothing, nothing.long(), nothing, nothing.long())


class Objective:
    """A criterion that learns from advantages.

    Args:
        learned: The samples of the pack.
        model: The model that predicts.
        hyperparameters: The hyperparameters of the objectives.
        sums: Takes what is logged.
        largest_error: How far the ratio of an on-policy step may be from 1; `None` where it is not checked.
    """

    def __init__(self, learned: Sequence[Learned], model, hyperparameters: Hyperparameters, sums, largest_error=None):
        self.learned, self.model, self.sums = learned, model, sums
        self.hyperparameters, self.largest_error = hyperparameters, largest_error

    def __call__(self, predictions: PackPredictions) -> Losses:
        """Sums over samples of losses that are means over their rows or decisions."""
        sums = {True: predictions.text_logits.sum() * 0, False: predictions.image.sum() * 0}  # all heads in the graph
        counts = {True: 0, False: 0}
        for each, rows in rows_of(self.learned, predictions):
            sums[each.is_text] = sums[each.is_text] + self._loss(each, rows)
            counts[each.is_text] += 1
        text_count, image_count = (torch.tensor(counts[each], device=sums[each].device) for each in (True, False))
        return Losses(sums[True], text_count, sums[False], image_count)

    def _loss(self, learned: Learned, rows: Rows) -> torch.Tensor:
        values = self.hyperparameters
        now = outcome_of(learned, rows, self.model, values.temperature)
        if not len(now):
            return rows.predicted.sum() * 0
        old = now.detach() if learned.old is None else learned.old.to(now)
        if learned.objective == "nft":
            wanted = (rows.targets, old, rows.times[:, None], learned.advantage)
            loss = nft_loss(now, *wanted, values.nft_strength, values.advantage_clip)
            divergence = None if learned.reference is None else (now - learned.reference.to(now)).square().mean()
        else:
            self._check_on_policy(learned, now)
            epsilon = values.epsilon_text if learned.is_text else values.epsilon_image
            loss, clipped = grpo_loss(now, old, learned.advantage, epsilon)
            self.sums.add(ratio_sum=(now.detach() - old).exp().mean(), clipped_sum=clipped, ratio_count=1)
            divergence = None if learned.reference is None else kl_estimate(now, learned.reference.to(now))
        if divergence is None:
            return loss
        self.sums.add(kl_sum=divergence.detach(), kl_count=1)
        return loss + values.beta * divergence

    def _check_on_policy(self, learned: Learned, now: torch.Tensor) -> None:
        """Replay and rollout must agree before the first update: contexts, noise and precision are then the same."""
        if self.largest_error is None or learned.drawn is None:
            return
        error = ((now.detach() - learned.drawn.to(now)).mean().exp() - 1).abs()
        self.sums.add(ratio_error_sum=error, ratio_error_count=1)
        if not error <= self.largest_error:
            raise ValueError(
                f"Before the first update the probabilities of {learned.id!r} in training and in drawing differ by "
                f"the factor {1 + error.item():.6f}, which must be 1: train in fp32, without dropout in adapters "
                "(lora_dropout=0), or raise ratio_tolerance."
            )


def nft_loss(
    velocity: torch.Tensor,
    target: torch.Tensor,
    old: torch.Tensor,
    times: torch.Tensor,
    advantage: float,
    strength: float,
    clip: float,
) -> torch.Tensor:
    """DiffusionNFT's loss of one image (its equations 5 and 6): r |v+ - v|^2 + (1 - r) |v- - v|^2 with the implicit
    positive velocity v+ = (1 - b) v_old + b v_now and negative v- = (1 + b) v_old - b v_now.

    Errors are those of predicted clean images, divided by their own mean. r is (1 + a / clip) / 2 of the advantage a.

    Args:
        velocity: (N, C) of the model that is trained.
        target: (N, C) of the finished image and its noise.
        old: (N, C) of the model that drew.
        times: (N, 1) flow times.
        advantage: a.
        strength: b.
        clip: The largest advantage that counts.
    """
    share = (1 + max(-clip, min(clip, advantage)) / clip) / 2
    move = strength * (velocity - old)
    positive, negative = _clean_error(old + move - target, times), _clean_error(old - move - target, times)
    return clip / strength * (share * positive + (1 - share) * negative)


def _clean_error(apart: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    apart = times * apart
    return apart.square().mean() / apart.detach().abs().mean().clamp(min=1e-5)


def grpo_loss(
    now: torch.Tensor, old: torch.Tensor, advantage: float, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped loss of one sample, a mean over its decisions (D,), and the share of decisions that were clipped."""
    ratio = (now - old).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    losses = -torch.minimum(ratio * advantage, bounded * advantage)
    clipped = (bounded * advantage < ratio * advantage).to(now.dtype).mean()
    return losses.mean(), clipped.detach()


def kl_estimate(now: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Schulman's unbiased estimate of the divergence from the reference (k3), a mean over decisions (D,)."""
    apart = reference - now
    return (apart.exp() - apart - 1).mean()
