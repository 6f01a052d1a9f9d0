"""`UniEditTrainer`: interleaved text and image losses over lossless packs, on transformers' `Trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniedit_hf.lazy import lazy_names


if TYPE_CHECKING:
    from .config import UniEditConfig
    from .data import TrainingPart
    from .trainer import UniEditTrainer

_MODULE_OF = {
    "TrainingPart": f"{__name__}.data",
    "UniEditConfig": f"{__name__}.config",
    "UniEditTrainer": f"{__name__}.trainer",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
