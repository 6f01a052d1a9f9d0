"""The parts of other libraries that this package uses beyond their documented interface.

The functions below touch private attributes of transformers, datasets and accelerate, so that other modules need not.
`UPSTREAM` lists all of them, and what stays elsewhere: methods of `Trainer` and others that we override, and names
from modules that are not documented. `tests/test_compat.py` checks every entry and says what is missing, in which
version, and which of our modules need it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any


# --- Auto classes of transformers -----------------------------------------------------------------------------------


def add_config_row(mapping: Any, names: dict[str, str], model_type: str, config_class: str) -> None:
    """Makes our configuration the one of a model type. Relies on `_LazyConfigMapping` asking `_extra_content`, which
    `AutoConfig.register` fills, before the table of names.

    Warns:
        UserWarning: transformers, or a call of `AutoConfig.register`, brought a configuration of that type, which ours
            replaces.
    """
    registered = mapping._extra_content.pop(model_type, None)
    found = names.get(model_type) if registered is None else registered.__qualname__
    if found is not None:
        origin = f"transformers {version('transformers')}" if registered is None else registered.__module__
        warnings.warn(
            f"The model type {model_type!r} is taken by {found} of {origin}: uniedit_hf replaces it with its own "
            f"{config_class}. To use the other one, load it without importing uniedit_hf.",
            stacklevel=2,
        )
    names[model_type] = config_class


def add_auto_row(mapping: Any, model_type: str, config_class: str, classes: Any) -> None:
    """Adds a row to a table behind an Auto class, as transformers does for its own models: names, resolved on first
    use. Relies on `_LazyAutoMapping` keeping them in `_model_mapping`, and the way back from a configuration in
    `_reverse_config_mapping`, which is made from the table of configurations and may be older than our row."""
    mapping._model_mapping[model_type] = classes
    mapping._reverse_config_mapping[config_class] = model_type


def look_up_in(mapping: Any, model_type: str, module: Any) -> None:
    """Makes an Auto class find the classes of a model type in a module of ours. Relies on `_LazyAutoMapping` keeping
    modules it has imported in `_modules`."""
    mapping._modules[model_type] = module


# --- torch.compile --------------------------------------------------------------------------------------------------


def keep_kernels_apart() -> None:
    """Keeps what torch.compile stores on disk for one kind of CPU from processes with another. Its keys leave out the
    instructions that a kernel was made for, and a FlexAttention kernel for AVX-512 gives wrong values in a process
    with AVX2 alone, and the other way round (torch 2.13)."""
    import torch
    from torch.compiler import config

    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in config.cache_key_tag:
        config.cache_key_tag += capability


# --- peft -----------------------------------------------------------------------------------------------------------


class QuietCheckpointing:
    """Answers peft, which asks models by a name for which transformers gives a FutureWarning; goes before
    `PreTrainedModel` among the bases."""

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.is_activation_checkpointing


# --- models ---------------------------------------------------------------------------------------------------------


def forget_adapters(model: Any) -> None:
    """Removes what is left of adapters that were merged. Relies on `PeftAdapterMixin` keeping
    `_hf_peft_config_loaded`, and on loading keeping the adapters' key names in `_weight_conversions`; without it the
    names of the class apply again.
    """
    del model.peft_config
    model._hf_peft_config_loaded = False
    vars(model).pop("_weight_conversions", None)


def embeddings_pass_gradients(model: Any) -> bool:
    """Whether `enable_input_require_grads` was called. Relies on it keeping its hooks in `_require_grads_hooks`."""
    return bool(vars(model).get("_require_grads_hooks"))


def placing_hook(module: Any) -> Any:
    """The hook by which accelerate moves a module, or `None`. Relies on accelerate keeping it in `_hf_hook`."""
    return getattr(module, "_hf_hook", None)


def execution_device(module: Any) -> Any:
    """The device that accelerate has assigned to a module, or `None`."""
    return getattr(placing_hook(module), "execution_device", None)


def has_forward_hooks(module: Any) -> bool:
    """Whether a call of a module does more than its forward. Relies on torch's `_forward_hooks` and
    `_forward_pre_hooks`."""
    return bool(module._forward_hooks or module._forward_pre_hooks or placing_hook(module) is not None)


# --- data sets ------------------------------------------------------------------------------------------------------


def content_id(dataset: Any) -> str:
    """An identifier of the content of a data set. Relies on `Dataset._fingerprint`."""
    return dataset._fingerprint


def stream_steps(stream: Any) -> Iterator[Any]:
    """Every step of a stream, from the last back to the files. Relies on `IterableDataset._ex_iterable`, and on its
    steps naming what they read from `ex_iterable` or `ex_iterables`."""
    yield from _steps(stream._ex_iterable)


def _steps(step: Any) -> Iterator[Any]:
    yield step
    for source in (vars(step).get("ex_iterable"), *vars(step).get("ex_iterables", ())):
        if source is not None:
            yield from _steps(source)


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upstream:
    """Something of another library that may change without notice.

    Args:
        name: `"package.module:Class.method"`.
        used_by: Our modules that need it.
        parameters: Names of the parameters that we pass, or that our override takes.
        attribute: Instead of `name` itself, an attribute that `name` sets on its objects.
    """

    name: str
    used_by: str
    parameters: tuple[str, ...] = ()
    attribute: str | None = None

    @property
    def package(self) -> str:
        return self.name.partition(".")[0].partition(":")[0]

    def problem(self) -> str | None:
        """A sentence that says what is missing, or `None`."""
        module, _, names = self.name.partition(":")
        try:
            found = import_module(module)
            for part in names.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            return self._sentence(f"has no {names} in {module}")
        if self.attribute is not None and not _sets(found, self.attribute):
            return self._sentence(f"has no attribute {self.attribute} that {names} in {module} sets")
        missing = [name for name in self.parameters if not _takes(found, name)]
        if missing:
            return self._sentence(f"has no parameter {', '.join(missing)} of {names} in {module}")
        return None

    def _sentence(self, gone: str) -> str:
        try:
            installed = version(self.package)
        except PackageNotFoundError:
            installed = "(not installed)"
        return f"{self.package} {installed} {gone}, which {self.used_by} of uniedit_hf needs."


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters


def _sets(owner: Any, name: str) -> bool:
    return hasattr(owner, name) or f".{name}" in inspect.getsource(owner)


TRAINER = "transformers.trainer:Trainer."
PRETRAINED = "transformers.modeling_utils:PreTrainedModel."
LAZY = "transformers.models.auto.auto_factory:_LazyAutoMapping"
CONFIG_TABLE = "transformers.models.auto.configuration_auto:"
QWEN = "transformers.models.qwen2.modeling_qwen2:"
LOADING = "transformers.core_model_loading:"
LAYOUTS = "models/bagel/layouts_bagel.py"

# Methods that ours override or wrap; the parameters are those that our version takes by name.
OVERRIDDEN = (
    Upstream(TRAINER + "_prepare_input", "training/trainer.py", ("data",)),
    Upstream(TRAINER + "_prepare_inputs", "training/evaluating.py, training/grpo/learning.py", ("inputs",)),
    Upstream(TRAINER + "_clip_grad_norm", "training/trainer.py", ("model",)),
    Upstream(TRAINER + "_get_grad_norm", "training/trainer.py", ("model", "grad_norm")),
    Upstream(TRAINER + "_build_accelerator_args", "training/trainer.py"),
    Upstream(
        TRAINER + "_prepare_for_training",
        "training/trainer.py",
        ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    ),
    Upstream(TRAINER + "_load_from_checkpoint", "training/resuming.py", ("resume_from_checkpoint", "model")),
    Upstream(TRAINER + "_load_best_model", "training/resuming.py"),
    Upstream(TRAINER + "_load_optimizer_and_scheduler", "training/resuming.py", ("checkpoint",)),
    Upstream(TRAINER + "_finalize_training", "training/resuming.py"),
    Upstream(TRAINER + "_save_optimizer_and_scheduler", "training/resuming.py", ("output_dir",)),
    Upstream(TRAINER + "_save_checkpoint", "training/resuming.py", ("model", "trial")),
    Upstream(TRAINER + "save_model", "training/resuming.py", ("output_dir", "_internal_call")),
    Upstream(TRAINER + "_push_from_checkpoint", "training/publishing.py", ("checkpoint_folder",)),
    Upstream(PRETRAINED + "_init_weights", "models/bagel", ("module",)),
    Upstream(
        PRETRAINED + "_load_pretrained_model",
        "models/bagel/pretrained_bagel.py",
        ("model", "state_dict", "checkpoint_files", "load_config", "expected_keys"),
    ),
    Upstream(PRETRAINED + "_set_gradient_checkpointing", "models/bagel and models/janus"),
    Upstream(
        "transformers.generation.utils:GenerationMixin._prepare_position_ids_for_generation",
        "models/bagel/decoding_bagel.py",
        ("inputs_tensor", "model_kwargs"),
    ),
    Upstream(
        "transformers.generation.utils:GenerationMixin._update_model_kwargs_for_generation",
        "models/bagel/decoding_bagel.py",
        ("outputs", "model_kwargs"),
    ),
    Upstream("torch.nn:Module._apply", "models/precision.py", ("fn", "recurse")),
    Upstream("datasets.load:dataset_module_factory", "release/bare_name.py", ("path", "revision", "data_dir")),
    Upstream("gradio:Blocks.preprocess_data", "spaces/uniedit_demo/demo/limits.py"),
)

# Class attributes that ours set, and attributes of their objects that ours read.
ATTRIBUTES = (
    *(
        Upstream(PRETRAINED + name, "models/bagel and models/janus")
        for name in (
            "_no_split_modules",
            "_skip_keys_device_placement",
            "_supports_sdpa",
            "_supports_flex_attn",
            "_supports_attention_backend",
            "_keep_in_fp32_modules",
            "_keep_in_fp32_modules_strict",
            "_keys_to_ignore_on_load_unexpected",
        )
    ),
    Upstream("transformers:PreTrainedConfig._attn_implementation", "models/bagel and models/janus"),
    Upstream("transformers:TrainingArguments._VALID_DICT_FIELDS", "training/config.py"),
    Upstream("transformers.integrations.peft:PeftAdapterMixin._hf_peft_config_loaded", "models/loading.py"),
    Upstream(LOADING + "convert_and_load_state_dict_in_model", "models/loading.py", attribute="_weight_conversions"),
    Upstream(PRETRAINED + "enable_input_require_grads", "training/flops.py", attribute="_require_grads_hooks"),
    Upstream("accelerate.hooks:add_hook_to_module", "compat.py", attribute="_hf_hook"),
    Upstream("torch.compiler:config", "compat.py", attribute="cache_key_tag"),
    Upstream("torch.nn:Module", "models/bagel/step_weights.py", attribute="_forward_hooks"),
    Upstream("torch.nn:Module", "models/bagel/step_weights.py", attribute="_forward_pre_hooks"),
    Upstream(
        "datasets:Dataset", "models/bagel/stored_views.py, models/janus/image_tokens.py", attribute="_fingerprint"
    ),
    Upstream("datasets:IterableDataset", "training/checks.py, training/provenance.py", attribute="_ex_iterable"),
    *(
        Upstream(LAZY, "registration.py", attribute=name)
        for name in ("_model_mapping", "_reverse_config_mapping", "_modules")
    ),
    Upstream(CONFIG_TABLE + "_LazyConfigMapping", "registration.py", attribute="_extra_content"),
)

# Names from modules whose place is not documented.
NAMES = (
    Upstream(CONFIG_TABLE + "CONFIG_MAPPING", "registration.py"),
    Upstream(CONFIG_TABLE + "CONFIG_MAPPING_NAMES", "registration.py"),
    Upstream("transformers.models.auto.modeling_auto:MODEL_MAPPING", "registration.py"),
    Upstream("transformers.models.auto.modeling_auto:MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "registration.py"),
    Upstream("transformers.models.auto.modeling_auto:MODEL_FOR_MULTIMODAL_LM_MAPPING", "registration.py"),
    Upstream("transformers.models.auto.processing_auto:PROCESSOR_MAPPING", "registration.py"),
    Upstream("transformers.models.auto.processing_auto:processor_class_from_name", "registration.py"),
    Upstream("transformers.models.auto.image_processing_auto:IMAGE_PROCESSOR_MAPPING", "registration.py"),
    Upstream("transformers.conversion_mapping:register_checkpoint_conversion_mapping", LAYOUTS, ("overwrite",)),
    *(
        Upstream(LOADING + name, LAYOUTS)
        for name in ("ConversionOps", "WeightConverter", "WeightRenaming", "revert_weight_conversion")
    ),
    *(
        Upstream(QWEN + name, "models/bagel/decoder_bagel.py, models/bagel/step_weights.py")
        for name in ("Qwen2MLP", "Qwen2RMSNorm", "Qwen2RotaryEmbedding", "eager_attention_forward")
    ),
    *(
        Upstream(f"transformers.models.llama.modeling_llama:{name}", "models/janus/token_drawing.py")
        for name in ("LlamaAttention", "LlamaDecoderLayer", "LlamaMLP", "LlamaRMSNorm")
    ),
    Upstream("transformers.models.siglip.modeling_siglip:SiglipEncoderLayer", "models/bagel/encoders_bagel.py"),
    Upstream(
        "transformers.models.janus.modeling_janus:JanusForConditionalGeneration", "models/janus/modeling_janus.py"
    ),
    Upstream("transformers.models.janus.modeling_janus:JanusVQVAE", "models/janus/image_tokens.py"),
    Upstream("transformers.models.janus.modeling_janus:JanusVQVAEConfig", "models/workload.py"),
    Upstream("transformers.models.janus.processing_janus:JanusProcessor", "models/janus/processing_janus.py"),
    Upstream("transformers.models.janus.processing_janus:JanusProcessorKwargs", "models/janus/processing_janus.py"),
    Upstream("transformers.models.janus.processing_janus:DEFAULT_SYSTEM_PROMPT", "models/janus/layout.py"),
    Upstream("transformers.cache_utils:StaticLayer", "models/bagel/token_step.py, models/bagel/step_memory.py"),
    Upstream("transformers.cache_utils:DynamicLayer", "models/bagel/step_memory.py"),
    Upstream("transformers.activations:ACT2FN", "models/bagel/encoders_bagel.py, models/bagel/step_weights.py"),
    *(
        Upstream("accelerate." + name, "models/offloading.py")
        for name in (
            "hooks:ModelHook.pre_forward",
            "hooks:ModelHook.init_hook",
            "hooks:add_hook_to_module",
            "hooks:remove_hook_from_module",
            "utils.memory:clear_device_cache",
            "utils:send_to_device",
        )
    ),
    Upstream("transformers.modeling_layers:GradientCheckpointingLayer", "models/bagel/decoder_bagel.py"),
    Upstream("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS", "models/bagel/decoder_bagel.py"),
    Upstream("transformers.utils.generic:can_return_tuple", "models/bagel"),
    Upstream("transformers.utils.hub:has_file", "models/bagel/checkpoint_bagel.py"),
    Upstream("transformers.integrations.deepspeed:is_deepspeed_zero3_enabled", "models/bagel/pretrained_bagel.py"),
    Upstream("transformers.generation.streamers:BaseStreamer", "streams.py"),
    *(
        Upstream(f"transformers.trainer:{name}", "training")
        for name in ("OPTIMIZER_NAME", "OPTIMIZER_NAME_BIN", "SCHEDULER_NAME", "TRAINER_STATE_NAME", "PushInProgress")
    ),
    Upstream("transformers.trainer_utils:PREFIX_CHECKPOINT_DIR", "training"),
    Upstream("transformers.trainer_utils:HubStrategy", "training/publishing.py"),
    Upstream(
        "transformers.trainer_utils:rotate_checkpoints",
        "training/resuming.py",
        ("output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"),
    ),
    Upstream("datasets.load:DatasetModule", "release/bare_name.py"),
    Upstream("datasets.iterable_dataset:BufferShuffledExamplesIterable", "training/checks.py"),
    Upstream("datasets.table:embed_table_storage", "cli/encoding.py"),
    Upstream("datasets.info:DatasetInfosDict", "release/dataset_card.py"),
    Upstream("datasets.utils.metadata:MetadataConfigs", "release/dataset_card.py"),
    Upstream("huggingface_hub.dataclasses:strict", "models/bagel/configuration_bagel.py"),
    Upstream("huggingface_hub.file_download:repo_folder_name", "models/bagel/checkpoint_bagel.py"),
    Upstream("peft.tuners.tuners_utils:BaseTunerLayer.get_base_layer", "models/loading.py"),
    Upstream("peft.tuners.tuners_utils:BaseTunerLayer.merge", "models/loading.py", ("safe_merge",)),
    Upstream("accelerate.utils:TorchDynamoPlugin", "training/trainer.py", ("backend",)),
    Upstream("gradio.data_classes:ImageData", "spaces/uniedit_demo/demo/limits.py"),
    Upstream("gradio.exceptions:InvalidPathError", "spaces/uniedit_demo/demo/limits.py"),
    Upstream("torch.utils._pytree:tree_map", "models/bagel/denoising_bagel.py, pipeline.py"),
    Upstream("torch.utils._pytree:tree_iter", "training/counted_memory.py"),
    Upstream("torch.utils._python_dispatch:TorchDispatchMode", "training/counted_memory.py"),
    Upstream("torch.utils._triton:has_triton", "models/bagel/generation_bagel.py, training/layer_options.py"),
    Upstream("torch:UntypedStorage._cdata", "training/counted_memory.py"),
    Upstream("torch:_foreach_lerp_", "training/ema.py"),
    Upstream("torch:_foreach_add_", "models/janus/token_drawing.py, models/bagel/token_step.py"),
    Upstream("torch._dynamo:mark_dynamic", "models/bagel/decoder_bagel.py"),
    Upstream("torch._dynamo:maybe_mark_dynamic", "models/bagel/token_step.py"),
    *(
        Upstream(f"torch:ops.aten.{name}", "training/layer_options.py")
        for name in (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        )
    ),
)

UPSTREAM = (*OVERRIDDEN, *ATTRIBUTES, *NAMES)
