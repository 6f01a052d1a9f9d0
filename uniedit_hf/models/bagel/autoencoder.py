"""FLUX's autoencoder in diffusers' class: pixels (B, 3, H, W) to latents (B, 16, H/8, W/8) and back, in fp32."""

from __future__ import annotations

from diffusers import AutoencoderKL

from .configuration_bagel import BagelVaeConfig


class Fp32Autoencoder(AutoencoderKL):
    """Moves to any device but keeps its dtype when the model around it is cast: in bf16 pictures would show it."""

    _no_split_modules = None  # it is kept whole itself, and FSDP would look for every class that diffusers names

    def _apply(self, fn, recurse=True):
        def without_cast(tensor):
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(without_cast, recurse)


def build_vae(config: BagelVaeConfig) -> Fp32Autoencoder:
    """The autoencoder of this shape, with random weights."""
    vae = Fp32Autoencoder(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(config.channel_multipliers),
        up_block_types=("UpDecoderBlock2D",) * len(config.channel_multipliers),
        block_out_channels=tuple(config.base_channels * each for each in config.channel_multipliers),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for parameter in vae.parameters():
        parameter.data = parameter.data.float()  # transformers builds whole models in the asked dtype
    return vae
