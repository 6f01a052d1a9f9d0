"""Official key names to our modules, as transformers' conversion mapping: used on loading, reverted on saving.

Only names differ, and the shape of the autoencoder's attention weights: 1 x 1 convolutions there, linear layers here.
"""

from __future__ import annotations

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


# every part of `BagelModel` but the language model
PARTS = r"(vit_model|connector|vit_pos_embed|latent_pos_embed|time_embedder|vae2llm|llm2vae)"

RENAMINGS = [
    (r"^language_model\.model\.", r"^model\.language_model\."),
    (r"^language_model\.lm_head\.", r"^lm_head\."),
    (rf"^{PARTS}\.", r"^model\.\1\."),
    (r"^(encoder|decoder)\.", r"^vae\.\1\."),
    (r"coder\.down\.", r"coder\.down_blocks\."),
    *((rf"decoder\.up\.{level}\.", rf"decoder\.up_blocks\.{3 - level}\.") for level in range(4)),
    (r"_blocks\.(\d+)\.block\.", r"_blocks\.\1\.resnets\."),
    (r"_blocks\.(\d+)\.downsample\.", r"_blocks\.\1\.downsamplers\.0\."),
    (r"_blocks\.(\d+)\.upsample\.", r"_blocks\.\1\.upsamplers\.0\."),
    (r"coder\.mid\.block_1\.", r"coder\.mid_block\.resnets\.0\."),
    (r"coder\.mid\.block_2\.", r"coder\.mid_block\.resnets\.1\."),
    (r"coder\.mid\.attn_1\.", r"coder\.mid_block\.attentions\.0\."),
    (r"attentions\.0\.norm\.", r"attentions\.0\.group_norm\."),
    *((rf"attentions\.0\.{x}\.bias", rf"attentions\.0\.to_{x}\.bias") for x in "qkv"),
    (r"attentions\.0\.proj_out\.bias", r"attentions\.0\.to_out\.0\.bias"),
    (r"\.nin_shortcut\.", r"\.conv_shortcut\."),
    (r"coder\.norm_out\.", r"coder\.conv_norm_out\."),
]
ATTENTION_WEIGHTS = [
    *((f"attentions.0.{x}.weight", f"attentions.0.to_{x}.weight") for x in "qkv"),
    ("attentions.0.proj_out.weight", "attentions.0.to_out.0.weight"),
]


class ConvolutionToLinear(ConversionOps):
    """A 1 x 1 convolution's weight (out, in, 1, 1) as a linear layer's (out, in)."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: _only(input_dict).flatten(1)}

    @property
    def reverse_op(self) -> ConversionOps:
        return LinearToConvolution()


class LinearToConvolution(ConversionOps):
    """A linear layer's weight (out, in) as a 1 x 1 convolution's (out, in, 1, 1)."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: _only(input_dict)[..., None, None]}

    @property
    def reverse_op(self) -> ConversionOps:
        return ConvolutionToLinear()


def _only(input_dict: dict):
    (value,) = input_dict.values()
    return value[0] if isinstance(value, list) else value


def conversion_mapping() -> list[WeightRenaming | WeightConverter]:
    """Official key names to ours, in the order transformers applies them."""
    renamings = [WeightRenaming(source, target) for source, target in RENAMINGS]
    return renamings + [
        WeightConverter(source, target, operations=[ConvolutionToLinear()]) for source, target in ATTENTION_WEIGHTS
    ]


def to_official(key: str) -> str:
    """The official name of one of our parameters."""
    reverse = [transform.reverse_transform() for transform in reversed(conversion_mapping())]
    for kind in (WeightConverter, WeightRenaming):
        for transform in reverse:
            if isinstance(transform, kind):
                key, _ = transform.rename_source_key(key)
    return key


register_checkpoint_conversion_mapping("bagel", conversion_mapping(), overwrite=True)
