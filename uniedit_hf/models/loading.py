"""Loads a model and its processor from a folder or Hub id, for any family and layout."""

from __future__ import annotations

import os

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from uniedit_hf.compat import forget_adapters
from uniedit_hf.hub import DOWNLOAD_OPTIONS

from .bagel.checkpoint_bagel import CheckpointFolder
from .bagel.configuration_bagel import BagelConfig
from .bagel.modeling_bagel import BagelForConditionalGeneration
from .bagel.processing_bagel import BagelProcessor


OFFICIAL_JANUS = "multi_modality"  # model_type in deepseek-ai's repositories


def load_model(name, **kwargs):
    """Loads a model with all its heads. Official BAGEL folders need no `config.json`.

    Raises:
        OSError: If there is no checkpoint.
        ValueError: If its tensors do not match its configuration, or it has the official layout of Janus-Pro.
    """
    name, kwargs = _without_adapter_subfolder(name, kwargs)
    if _is_bagel(name, **kwargs):
        return BagelForConditionalGeneration.from_pretrained(name, **kwargs)
    return AutoModelForMultimodalLM.from_pretrained(name, **kwargs)


def load_config(name, **kwargs):
    """The configuration of a model, without its weights.

    Raises:
        OSError: If there is no checkpoint.
        ValueError: As `load_model`.
    """
    name, kwargs = _without_adapter_subfolder(name, kwargs)
    options = {key: kwargs[key] for key in (*DOWNLOAD_OPTIONS, "config") if key in kwargs}
    if options.get("config") is not None:
        return options["config"]
    if _is_bagel(name, **options):
        return BagelConfig.from_pretrained(name, **options)
    return AutoConfig.from_pretrained(name, **options)


def empty_model(config):
    """A model of this shape with all its heads but without weights, on the meta device: only for counting."""
    with torch.device("meta"):
        if isinstance(config, BagelConfig):
            return BagelForConditionalGeneration(config)
        return AutoModelForMultimodalLM.from_config(config)


def load_processor(name, config, **kwargs):
    """The processor saved with a checkpoint; for official BAGEL folders one made of their tokenizer.

    Raises:
        OSError: If the checkpoint has no tokenizer.
    """
    options = {key: kwargs[key] for key in DOWNLOAD_OPTIONS if key in kwargs}
    if isinstance(config, BagelConfig):
        return BagelProcessor.from_checkpoint(name, config, **options)
    return AutoProcessor.from_pretrained(name, **options)


def inner_model(model):
    """The model inside its adapters, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge_adapters(model):
    """Merges a model's adapters into its weights. The model was loaded from an adapter's folder or Hub id, or is a
    `PeftModel`.

    Raises:
        ValueError: If there are no adapters.
    """
    if isinstance(model, PeftModel):
        return model.merge_and_unload()
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if not adapted:
        raise ValueError("The model has no adapters to merge: load the folder or Hub id of the adapters.")
    for name in adapted:
        layer = model.get_submodule(name)
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    forget_adapters(model)
    return model


def _without_adapter_subfolder(name, kwargs: dict) -> tuple:
    """The local path of adapters in a subfolder: transformers would look for the base model in the same subfolder.

    A repository's subfolder is downloaded.
    """
    if not kwargs.get("subfolder"):
        return name, kwargs
    folder = CheckpointFolder(name, kwargs)
    config = folder.fetch("adapter_config.json")
    if config is None or folder.has("config.json"):
        return name, kwargs
    folder.fetch("adapter_model.safetensors")
    moved = ("subfolder", "revision")
    return os.path.dirname(config), {key: value for key, value in kwargs.items() if key not in moved}


def _is_bagel(name, **kwargs) -> bool:
    if kwargs.get("config") is not None:
        return isinstance(kwargs["config"], BagelConfig)
    folder = CheckpointFolder(name, kwargs)
    config = folder.json("config.json")
    if not config and folder.has("adapter_config.json"):
        base = folder.json("adapter_config.json")["base_model_name_or_path"]
        try:
            return _is_bagel(base)
        except OSError as error:
            raise OSError(f"{name} has adapters for the base model {base}, which cannot be loaded: {error}") from error
    if not config or folder.has("llm_config.json"):
        return True  # an official folder, or no checkpoint at all: the class says what is missing
    if config.get("model_type") == OFFICIAL_JANUS:
        raise ValueError(
            f"{name} has the official layout of Janus-Pro, which transformers' classes do not read: take the same "
            f"model from deepseek-community, or run `uniedit convert --input_dir {name} --output_dir FOLDER --to "
            "transformers` on a local copy."
        )
    return "llm_config" in config or config.get("model_type") == BagelConfig.model_type
