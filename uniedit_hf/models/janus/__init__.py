"""Janus-Pro (arXiv 2501.17811) on transformers' Janus classes: the same configuration, weights and class names, with
training of image tokens, editing and guidance added. These classes can do everything that transformers' can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniedit_hf.lazy import lazy_names


if TYPE_CHECKING:
    from transformers.models.janus import JanusConfig

    from .modeling_janus import JanusForConditionalGeneration
    from .processing_janus import JanusProcessor

_MODULE_OF = {
    "JanusConfig": "transformers.models.janus",
    "JanusForConditionalGeneration": f"{__name__}.modeling_janus",
    "JanusProcessor": f"{__name__}.processing_janus",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
