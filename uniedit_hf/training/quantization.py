"""Weights stored in 4 or 8 bits by bitsandbytes, on which adapters are trained."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig


NOT_QUANTIZED = ("vae", "model.vit_model", "model.connector", "model.time_embedder", "vae2llm", "llm2vae", "lm_head")
NOT_QUANTIZED += ("model.vqmodel", "model.vision_model", "model.aligner", "model.generation_aligner")  # of Janus-Pro
NOT_QUANTIZED += ("model.generation_head",)


def quantized_weights(bits: int, dtype: torch.dtype | str | None = None) -> BitsAndBytesConfig:
    """The quantization of the adapted layers; encoders and small layers are not quantized.

    Args:
        bits: 4 (NF4) or 8.
        dtype: dtype of matrix products; bf16 if it is not set or `"auto"`.

    Raises:
        ValueError: If bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"Weights of {bits} bits need the package bitsandbytes: pip install 'uniedit_hf[quantization]'."
        )
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else dtype,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )
