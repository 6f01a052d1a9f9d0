"""Tune a unified multimodal model with one task, intelligent image editing, on the Hugging Face stack.

Importing this package imports neither torch nor transformers nor datasets: public names are imported on first use, and
the models register with the Auto classes when transformers is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniedit_hf.former_modules import refuse_former_modules
from uniedit_hf.lazy import lazy_names
from uniedit_hf.registration import register_when_imported


if TYPE_CHECKING:
    from uniedit_hf.models.bagel import (
        BagelConfig,
        BagelForConditionalGeneration,
        BagelImageProcessor,
        BagelModel,
        BagelProcessor,
    )
    from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor
    from uniedit_hf.pipeline import UniEditPipeline
    from uniedit_hf.recipes import answer_sample, edit_sample, generate_sample
    from uniedit_hf.segments import ImageSegment, Sample, TextSegment
    from uniedit_hf.training import UniEditConfig, UniEditTrainer

__version__ = "0.1.0"

_MODULE_OF = {
    "BagelConfig": "uniedit_hf.models.bagel",
    "BagelForConditionalGeneration": "uniedit_hf.models.bagel",
    "BagelImageProcessor": "uniedit_hf.models.bagel",
    "BagelModel": "uniedit_hf.models.bagel",
    "BagelProcessor": "uniedit_hf.models.bagel",
    "JanusForConditionalGeneration": "uniedit_hf.models.janus",
    "JanusProcessor": "uniedit_hf.models.janus",
    "ImageSegment": "uniedit_hf.segments",
    "Sample": "uniedit_hf.segments",
    "TextSegment": "uniedit_hf.segments",
    "UniEditConfig": "uniedit_hf.training",
    "UniEditPipeline": "uniedit_hf.pipeline",
    "UniEditTrainer": "uniedit_hf.training",
    "answer_sample": "uniedit_hf.recipes",
    "edit_sample": "uniedit_hf.recipes",
    "generate_sample": "uniedit_hf.recipes",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

register_when_imported()
refuse_former_modules()
