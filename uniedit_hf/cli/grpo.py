"""`uniedit grpo`: tunes a model by reinforcement learning.

    uniedit grpo --model_name_or_path me/bagel-uniedit --dataset_name uniedit-148k --reward_funcs judge preservation \\
        --judge '{"model": "gpt-5", "api_key_env": "OPENAI_API_KEY"}' --output_dir runs/bagel-grpo
    uniedit grpo --config examples/grpo/small_world.yaml

The settings of a run are those of `UniEditGRPOConfig`; model and data are named as for `uniedit train`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from uniedit_hf.cli.train import DataOptions, ModelOptions, run_trainer
from uniedit_hf.rewards import REWARDS, reward_named
from uniedit_hf.training.grpo.grpo_config import UniEditGRPOConfig


JUDGE = "judge"


@dataclass
class RewardOptions:
    reward_funcs: list[str] = field(
        metadata={
            "help": f"rewards: {', '.join(REWARDS)}, {JUDGE}, or the import path of a function of your own",
            "metavar": "NAME",
        }
    )
    judge: dict | str | None = field(
        default=None,
        metadata={"help": "settings of the judge: model, base_url, api_key_env, prompt, cache", "metavar": "JSON"},
    )


def run(model: ModelOptions, data: DataOptions, rewards: RewardOptions, training: UniEditGRPOConfig) -> None:
    from uniedit_hf.training.grpo import UniEditGRPOTrainer

    if rewards.judge is not None and JUDGE not in rewards.reward_funcs:
        raise ValueError("judge has settings, but reward_funcs does not name 'judge': add it, or leave judge out.")
    funcs = [_judge(rewards.judge) if name == JUDGE else _reward(name) for name in rewards.reward_funcs]
    run_trainer(functools.partial(UniEditGRPOTrainer, reward_funcs=funcs), model, data, training)


def _judge(settings: dict | str | None) -> Callable:
    """The judge with these settings."""
    from pydantic import ValidationError

    from uniedit_hf.rewards import JudgeReward

    try:
        given = json.loads(settings) if isinstance(settings, str) else dict(settings or {})
    except json.JSONDecodeError as error:
        raise ValueError(f"judge is not valid JSON: {error}.") from error
    try:
        return JudgeReward(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"judge: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def _reward(name: str) -> Callable:
    """A reward by its name or import path."""
    if "." not in name:
        return reward_named(name)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs names {name!r}, which cannot be imported: {error}.") from error
