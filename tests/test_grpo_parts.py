"""The parts of reinforcement learning: advantages, objectives against their formulas, calls of rewards."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from uniedit_hf.models.bagel.sde_bagel import Transition, step_distribution
from uniedit_hf.training.grpo.advantages import advantages_of
from uniedit_hf.training.grpo.objectives import grpo_loss, kl_estimate, nft_loss
from uniedit_hf.training.grpo.reward_calls import RewardCalls, RewardError


# ---- advantages


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_advantages_are_those_of_trl(rewards):
    groups = np.array(rewards).reshape(2, 4)
    found = advantages_of(torch.tensor(rewards, dtype=torch.float64), 4, "group").view(2, 4).numpy()
    for group, own in zip(groups, found):
        if group.max() - group.min() > 1e-8:
            np.testing.assert_allclose(own, (group - group.mean()) / (group.std(ddof=1) + 1e-4), atol=1e-9)
        else:
            assert not own.any(), "rewards that are all alike teach nothing"


def test_advantages_of_other_scales():
    rewards = torch.tensor([0.0, 1.0, 3.0, 3.0, 1.0, math.nan], dtype=torch.float64)
    assert advantages_of(rewards, 2, "none").tolist() == [-0.5, 0.5, 0, 0, 0, 0]
    scaled = advantages_of(rewards, 2, "batch")
    assert scaled[1] == pytest.approx(0.5 / (np.std([0, 1, 3, 3, 1], ddof=1) + 1e-4))
    assert scaled[4:].tolist() == [0, 0], "what nothing is known of, and what stands alone, teaches nothing"


# ---- objectives against plain formulas, with their gradients


def gradient(loss, of):
    return torch.autograd.grad(loss, of)[0]


@pytest.mark.parametrize("advantage", [-7.0, -1.0, 0.3, 2.0])
def test_nft_is_its_formula(advantage):
    draw = torch.Generator().manual_seed(0)
    now, old, clean, noise = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(4))
    times, b, clip = torch.rand(6, 1, generator=draw, dtype=torch.float64), 0.7, 5.0
    now.requires_grad_()
    loss = nft_loss(now, noise - clean, old, times, advantage, b, clip)
    # the paper's, in predicted clean images
    noised, r = (1 - times) * clean + times * noise, (np.clip(advantage / clip, -1, 1) + 1) / 2
    errors = []
    for velocity in ((1 - b) * old + b * now, (1 + b) * old - b * now):
        apart = (noised - times * velocity) - clean
        errors.append((apart**2).mean() / apart.abs().mean().detach())
    plain = clip / b * (r * errors[0] + (1 - r) * errors[1])
    assert loss.item() == pytest.approx(plain.item(), rel=1e-9)
    torch.testing.assert_close(gradient(loss, now), gradient(plain, now), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("advantage", [-1.5, 0.5])
def test_grpo_is_its_formula(advantage):
    draw = torch.Generator().manual_seed(1)
    now, old = (-torch.rand(9, generator=draw, dtype=torch.float64) for _ in range(2))
    now.requires_grad_()
    loss, clipped = grpo_loss(now, old, advantage, 0.2)
    total, outside = 0.0, 0
    for new, before in zip(now, old):
        ratio = torch.exp(new - before)
        bounded = ratio if 0.8 <= ratio <= 1.2 else torch.tensor(1.2 if ratio > 1 else 0.8, dtype=torch.float64)
        first, second = -advantage * ratio, -advantage * bounded
        total = total + (first if first >= second else second)
        outside += bool(second > first)
    assert loss.item() == pytest.approx((total / 9).item(), rel=1e-9) and clipped == pytest.approx(outside / 9)
    torch.testing.assert_close(gradient(loss, now), gradient(total / 9, now), rtol=1e-5, atol=1e-12)


def test_on_policy_grpo_is_the_policy_gradient():
    now = (-torch.rand(5, dtype=torch.float64)).requires_grad_()
    loss, clipped = grpo_loss(now, now.detach(), 2.0, 1e-5)
    assert clipped == 0
    torch.testing.assert_close(gradient(loss, now), torch.full((5,), -2.0 / 5, dtype=torch.float64))


def test_divergence():
    now, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0])
    assert kl_estimate(now, now) == 0
    assert kl_estimate(now, reference).item() == pytest.approx((math.exp(-0.5) + 0.5 - 1) / 2)


# ---- stochastic steps


@pytest.mark.parametrize("form", ["flow_sde", "cps"])
def test_steps_keep_the_noise_that_their_time_says(form):
    """With the true velocity of Gaussian data, a step gives the marginal of the next time."""
    draw, time, following = torch.Generator().manual_seed(0), 0.7, 0.69
    clean, noise = (torch.randn(200_000, 1, generator=draw, dtype=torch.float64) for _ in range(2))
    latents = (1 - time) * clean + time * noise
    variance = (1 - time) ** 2 + time**2
    velocity = latents * (time - (1 - time)) / variance  # the mean of noise - clean given the latents
    mean, scale = step_distribution(form, latents, velocity, time, following, 0.5, 0.95)
    after = mean + scale * torch.randn(latents.shape, generator=draw, dtype=torch.float64)
    assert after.var().item() == pytest.approx((1 - following) ** 2 + following**2, abs=0.01)


@pytest.mark.parametrize("form", ["flow_sde", "cps"])
def test_log_probabilities_of_steps(form):
    draw = torch.Generator().manual_seed(0)
    before, after, velocity = (torch.randn(3, 2, generator=draw) for _ in range(3))
    step = Transition(form, 0.8, before, after, 1.0, 0.9, 0.9)
    t, following, a = 1.0, 0.9, 0.8
    if form == "cps":
        s = following * math.sin(a * math.pi / 2)
        mean = (before - t * velocity) * (1 - following) + before * math.sqrt(following**2 - s**2)
        plain = -((after - mean) ** 2).mean()
    else:
        dt, s = following - t, a * math.sqrt(t / (1 - 0.9))
        mean = before * (1 + s**2 / (2 * t) * dt) + velocity * (1 + s**2 * (1 - t) / (2 * t)) * dt
        scale = s * math.sqrt(-dt)
        plain = torch.distributions.Normal(mean, scale).log_prob(after).mean()
    assert step.log_probs(velocity).item() == pytest.approx(plain.item(), rel=1e-5)


# ---- calls of rewards


def answered(*funcs, weights=None, timeout=5.0):
    calls = RewardCalls(list(funcs), weights, timeout)
    rewards = calls(["row-1", "row-2"], {"images": ["a", "b"], "texts": [None, None]})
    return calls, rewards


def length(images, **columns):
    return [len(image) for image in images]


async def slow_half(images, **columns):
    await asyncio.sleep(0.01)
    return [0.5, None]


def test_rewards_are_called_and_weighed():
    calls, rewards = answered(length, slow_half, length, weights=[1.0, 2.0, 0.5])
    assert calls.names == ["length_0", "slow_half", "length_1"]
    assert torch.equal(rewards.isnan(), torch.tensor([[False, False, False], [False, True, False]]))
    assert calls.total(rewards).tolist() == [2.5, 1.5]
    assert calls.total(torch.full((1, 3), math.nan)).isnan().all()


def test_arrays_and_tensors_are_taken():
    assert answered(lambda images, **_: np.array([1.0, 2.0]))[1].tolist() == [[1.0], [2.0]]
    assert answered(lambda images, **_: torch.tensor([1, 2]))[1].tolist() == [[1.0], [2.0]]


def raising(**columns):
    raise KeyError("answer")


def endless(**columns):
    time.sleep(20)


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (lambda **_: [1.0], "returned 1 values for 2 completions: return one number or None for each"),
        (lambda **_: [1.0, math.nan], "returned nan for row 'row-2': return a finite number, or None"),
        (lambda **_: [1.0, "good"], "returned 'good' for row 'row-2': return a finite number, or None"),
        (lambda **_: 1.0, "returned a float: return a list with one number or None for each completion"),
        (raising, "The reward 'raising' raised KeyError: 'answer'"),
        (endless, "The reward 'endless' has not returned after 0.2 s: mend it, or raise reward_timeout"),
    ],
)
def test_rewards_that_fail(func, message):
    with pytest.raises(RewardError, match=message):
        answered(func, timeout=0.2 if func is endless else 5.0)


@pytest.mark.parametrize(
    ("funcs", "weights", "message"),
    [
        ([], None, "reward_funcs is empty, so nothing could be learned"),
        (["best"], None, "There is no reward 'best'"),
        ([3], None, "reward_funcs has a int: give functions or names of rewards"),
        (["small_world"], [1.0, 2.0], "reward_weights has 2 values for 1 reward_funcs"),
    ],
)
def test_rewards_that_cannot_be_called(funcs, weights, message):
    with pytest.raises(ValueError, match=message):
        RewardCalls(funcs, weights, 1.0)
