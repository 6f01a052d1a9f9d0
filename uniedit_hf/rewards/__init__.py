"""Rewards that can be checked: functions of what a model drew or wrote and of the columns of the row.

`reward(images, sources, instructions, **columns)` returns one number or `None` for each image.

`images` are what was drawn, `None` where a text was written; `texts` are what was written, `None` where an image was
drawn; `sources` are the images that were edited or asked about; every other keyword is a column of the data set, one
value for each image. A reward is a number from 0 (wrong) to 1 (right), or `None` where it does not apply. Images that
cannot be opened or read get 0; rewards do not raise because of what a model made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uniedit_hf.lazy import lazy_names


if TYPE_CHECKING:
    from .answer_match import answer_match
    from .judge_reward import JudgeReward
    from .leave_alone import leave_alone
    from .preservation import preservation
    from .rendered_text import rendered_text
    from .scene_reward import small_world, small_world_changed, small_world_kept, small_world_parts

_MODULE_OF = {
    "JudgeReward": f"{__name__}.judge_reward",
    "answer_match": f"{__name__}.answer_match",
    "leave_alone": f"{__name__}.leave_alone",
    "preservation": f"{__name__}.preservation",
    "rendered_text": f"{__name__}.rendered_text",
    "small_world": f"{__name__}.scene_reward",
    "small_world_changed": f"{__name__}.scene_reward",
    "small_world_kept": f"{__name__}.scene_reward",
    "small_world_parts": f"{__name__}.scene_reward",
}
# What may be named in a file of settings.
REWARDS = tuple(name for name in _MODULE_OF if name.islower())

__all__ = [*_MODULE_OF, "REWARDS", "reward_named"]
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)


def reward_named(name: str) -> Callable:
    """The reward with this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in REWARDS:
        raise ValueError(f"There is no reward {name!r}: use one of {', '.join(REWARDS)}, or pass a function.")
    return __getattr__(name)
