"""Registers our models with the Auto classes of transformers, and the name `uniedit-148k` with datasets, without
importing anything before it is needed.

`AutoModel.register` takes classes, and our classes import torch and diffusers, which takes seconds and, while
transformers itself is being imported, would be circular. So BAGEL is registered the way transformers registers its
own models: as rows in its tables of names, resolved on first use in the module `transformers.models.bagel`, which is
an alias of `uniedit_hf.models.bagel`. The rows are added when the module that holds a table is imported, or
immediately if it already was.

transformers already has rows for Janus-Pro. Our classes are subclasses with the same names, so transformers alone can
read what we save; the tables of models and processors find them in `uniedit_hf.models.janus`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import wrapt

from uniedit_hf.compat import add_auto_row, add_config_row, look_up_in


AUTO = "transformers.models.auto"
MODEL_TYPE = "bagel"
CONFIGURATION = "BagelConfig"

# Module of transformers -> the mapping behind an Auto class -> its value for our configuration.
MAPPINGS = {
    "modeling_auto": {
        "MODEL_MAPPING": "BagelModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING": "BagelForConditionalGeneration",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": "BagelForConditionalGeneration",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING": "BagelForConditionalGeneration",
    },
    "processing_auto": {"PROCESSOR_MAPPING": "BagelProcessor"},
    "image_processing_auto": {"IMAGE_PROCESSOR_MAPPING": {"pil": "BagelImageProcessor"}},
}


# Tables in which Janus-Pro's classes are found in our module. `AutoModel` stays transformers' own.
JANUS = "janus"
JANUS_MAPPINGS = {
    "modeling_auto": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
    "processing_auto": ("PROCESSOR_MAPPING",),
    "image_processing_auto": (),
}


def register_when_imported() -> None:
    """Adds the hooks; importing `uniedit_hf` calls this once."""
    wrapt.register_post_import_hook(_add_configuration, f"{AUTO}.configuration_auto")
    for module in MAPPINGS:
        wrapt.register_post_import_hook(_add_classes, f"{AUTO}.{module}")
    wrapt.register_post_import_hook(_add_data_set, "datasets.load")


def _add_configuration(module: ModuleType) -> None:
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = import_module(f"uniedit_hf.models.{MODEL_TYPE}")
    add_config_row(module.CONFIG_MAPPING, module.CONFIG_MAPPING_NAMES, MODEL_TYPE, CONFIGURATION)


def _add_classes(module: ModuleType) -> None:
    table = module.__name__.removeprefix(f"{AUTO}.")
    for name in JANUS_MAPPINGS[table]:
        look_up_in(vars(module)[name], JANUS, import_module(f"uniedit_hf.models.{JANUS}"))
    if table == "processing_auto":
        wrapt.wrap_function_wrapper(module, "processor_class_from_name", _processor_class)
    for name, classes in MAPPINGS[table].items():
        add_auto_row(vars(module)[name], MODEL_TYPE, CONFIGURATION, classes)


def _processor_class(find, module, arguments, options):
    """Looks up a processor by the class name in its folder."""
    (name,) = arguments or options.values()
    return import_module(f"uniedit_hf.models.{JANUS}").JanusProcessor if name == "JanusProcessor" else find(name)


def _add_data_set(module: ModuleType) -> None:
    import_module("uniedit_hf.release.bare_name").add_name(module)
