"""BAGEL (Emerging Properties in Unified Multimodal Pretraining, arXiv 2505.14683) as a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniedit_hf.lazy import lazy_names


if TYPE_CHECKING:
    from .configuration_bagel import BagelConfig
    from .image_processing_bagel import BagelImageProcessor
    from .modeling_bagel import BagelForConditionalGeneration, BagelModel
    from .processing_bagel import BagelProcessor

_MODULE_OF = {
    "BagelConfig": f"{__name__}.configuration_bagel",
    "BagelForConditionalGeneration": f"{__name__}.modeling_bagel",
    "BagelImageProcessor": f"{__name__}.image_processing_bagel",
    "BagelModel": f"{__name__}.modeling_bagel",
    "BagelProcessor": f"{__name__}.processing_bagel",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
