"""`UniEditGRPOTrainer`: reinforcement learning of drawings, edits and answers with rewards, on `UniEditTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniedit_hf.lazy import lazy_names


if TYPE_CHECKING:
    from .grpo_config import UniEditGRPOConfig
    from .grpo_trainer import UniEditGRPOTrainer

_MODULE_OF = {
    "UniEditGRPOConfig": f"{__name__}.grpo_config",
    "UniEditGRPOTrainer": f"{__name__}.grpo_trainer",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
