"""Base class of all BAGEL models: initialization, capabilities, and loading that never leaves a weight random."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, initialization
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from uniedit_hf.compat import QuietCheckpointing
from uniedit_hf.models.precision import FixedLinear

from .checkpoint_bagel import CheckpointFolder, check_safetensors, open_tensors
from .configuration_bagel import BagelConfig
from .encoders_bagel import Fp32Autoencoder, SinCosPositions, sincos_table
from .layouts_bagel import check_loading


class BagelPreTrainedModel(QuietCheckpointing, PreTrainedModel):
    """Base class of all BAGEL models: initialization, capabilities, and loading that never leaves a weight random."""

    config: BagelConfig
    config_class = BagelConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["BagelDecoderLayer", "SiglipEncoderLayer", "Fp32Autoencoder"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, SinCosPositions):
            initialization.copy_(module.pos_embed, sincos_table(module.side, module.pos_embed.shape[1]))
        elif isinstance(module, FixedLinear):  # as transformers initializes a linear layer
            initialization.normal_(
                module.weight, mean=0.0, std=getattr(self.config, "initializer_range", 0.02) or 0.02
            )
            if module.bias is not None:
                initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info=False, ignore_mismatched_sizes=False, **kwargs
    ):
        """Loads our own layout, the official one or sharded official key names, as `PreTrainedModel` does.

        With `ignore_mismatched_sizes` tensors of another shape than the configuration's are left at random.

        Raises:
            ValueError: If a tensor is missing, unexpected or of a wrong shape; the message names it.
            OSError: If a file of the checkpoint is missing.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        check_loading(info, pretrained_model_name_or_path, ignore_mismatched_sizes)
        model.freeze_fixed_parts()
        return (model, info) if output_loading_info else model

    def to(self, *args, **kwargs):
        """As in torch.

        Raises:
            ValueError: If the model moves to a device without having been filled, as accelerate leaves it when a
                checkpoint has official names.
        """
        try:
            return super().to(*args, **kwargs)
        except NotImplementedError as error:
            empty = [name for name, parameter in self.named_parameters() if parameter.is_meta]
            if not empty:
                raise
            raise ValueError(
                f"{len(empty)} weights were never loaded, {empty[0]} among them. load_checkpoint_and_dispatch of "
                "accelerate reads only checkpoints saved with save_original_format=False: save it so, or load it with "
                "from_pretrained(..., device_map=...)."
            ) from error

    def freeze_fixed_parts(self) -> None:
        """The position tables and the autoencoder are never trained."""
        for module in self.modules():
            if isinstance(module, (SinCosPositions, Fp32Autoencoder)):
                module.requires_grad_(False)

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, checkpoint_files, load_config, expected_keys=None):
        # An adapter has no dtype, and its files are read unchanged.
        if checkpoint_files is not None and load_config.dtype is not None:
            check_safetensors(checkpoint_files)
            folder = CheckpointFolder(load_config.pretrained_model_name_or_path, load_config.download_kwargs)
            checkpoint_files = folder.complete(checkpoint_files)
            if (
                not is_deepspeed_zero3_enabled()
            ):  # which reads the files on one process and does not support lazy tensors
                state_dict = open_tensors(checkpoint_files, load_config.dtype)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)
