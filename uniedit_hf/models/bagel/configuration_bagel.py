"""The shape of a BAGEL model. Without arguments: the released 7B mixture-of-transformers."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig


# The token types, which decide how a token is embedded and which expert processes it.
PADDING, TEXT, VIT, LATENT = range(4)


@strict
class BagelTextConfig(Qwen2Config):
    """The language model: a Qwen2 decoder whose layers hold one expert for understanding and one for generation.

    Defaults: the Qwen2.5-7B shape with per-head RMS norms on queries and keys.
    """

    model_type = "bagel_text"
    base_config_key = "text_config"

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    pad_token_id: int | None = 151643
    bos_token_id: int | None = 151644
    eos_token_id: int | list[int] | None = 151645

    def __post_init__(self, **kwargs):
        # The released configurations have `rope_theta` at the top level; transformers 5 stores it in a dictionary.
        theta = kwargs.pop("rope_theta", 1e6)
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        super().__post_init__(**kwargs)


@strict
class BagelVisionConfig(SiglipVisionConfig):
    """The understanding encoder: SigLIP-so400m/14 that takes images of any size.

    `image_size` is the side of the square table of learned positions, in pixels; `num_hidden_layers` counts the
    layers that exist (the official `vit_config.json` lists one more, whose output is not used).
    """

    model_type = "bagel_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    image_size: int | list[int] | tuple[int, int] = 980
    patch_size: int | list[int] | tuple[int, int] = 14
    vision_use_head: bool = False

    @property
    def patches_per_side(self) -> int:
        """Rows and columns of the table of learned positions."""
        return self.image_size // self.patch_size


@strict
class BagelVaeConfig(PreTrainedConfig):
    """The generation autoencoder: FLUX's, frozen. Pixels (B, 3, H, W) become latents (B, z_channels, H/8, W/8).

    `norm_num_groups` is the number of groups of the group norms. FLUX's 32 suit its 128 channels; with as many groups
    as channels, the mean of each channel is normalized away, and with it the tint of an image.

    Raises:
        ValueError: If `channel_multipliers` does not name four levels, which a factor of 8 requires, or if the groups
            do not divide the channels.
    """

    model_type = "bagel_vae"
    base_config_key = "vae_config"

    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    z_channels: int = 16
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if len(self.channel_multipliers) != 4:
            raise ValueError(
                f"vae_config.channel_multipliers has {len(self.channel_multipliers)} levels, but latents are 1/8 of "
                "the image, which requires exactly four: name four multipliers."
            )
        if self.base_channels % self.norm_num_groups:
            raise ValueError(
                f"vae_config.norm_num_groups is {self.norm_num_groups}, which does not divide base_channels "
                f"({self.base_channels}): name a divisor."
            )


@strict
class BagelConfig(PreTrainedConfig):
    """The whole model: the language model, two image encoders and the layers that connect them.

    Args:
        text_config: Shape of the language model.
        vision_config: Shape of the understanding encoder (`vit` view).
        vae_config: Shape of the generation autoencoder (`vae` view).
        latent_patch_size: Side of the square of latents that is one token; 2 makes 16 x 16 pixels a token.
        max_latent_size: Rows and columns of the table of latent positions; 64 allows 1024 x 1024 pixels.
        connector_hidden_act: Activation between the two linear layers from the understanding encoder to the language
            model.
        timestep_shift: Training shift of the flow time; t becomes s t / (1 + (s - 1) t).
        vision_start_token_id: Token before every image.
        vision_end_token_id: Token after every image.
    """

    model_type = "bagel"
    sub_configs_defaults = {
        "text_config": BagelTextConfig,
        "vision_config": BagelVisionConfig,
        "vae_config": BagelVaeConfig,
    }
    # The official folder has a separate file for the autoencoder; `from_pretrained` reads it as well.
    extra_files = ("ae.safetensors",)
    # TRL reads this if a class is not one of transformers: nothing here is remote code, so it uses an Auto class.
    auto_map = {}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vae_config: dict | PreTrainedConfig | None = None
    latent_patch_size: int = 2
    max_latent_size: int = 64
    connector_hidden_act: str = "gelu_pytorch_tanh"
    timestep_shift: float = 1.0
    bos_token_id: int | None = 151644
    eos_token_id: int | None = 151645
    pad_token_id: int | None = 151643
    vision_start_token_id: int | None = 151652
    vision_end_token_id: int | None = 151653
    tie_word_embeddings: bool = False

    @property
    def latent_token_size(self) -> int:
        """Channels of a latent token: a square of `latent_patch_size` latents."""
        return self.latent_patch_size**2 * self.vae_config.z_channels

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads our own `config.json`, or gathers the settings of an official checkpoint folder."""
        from .layouts_bagel import config_dict_of

        return config_dict_of(super().get_config_dict, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As for any configuration. `AutoConfig` calls this with an unchanged official `config.json`; the rest is then
        read from the folder.
        """
        if "llm_config" in config_dict:
            folder, revision = kwargs["name_or_path"], config_dict.get("_commit_hash")
            config_dict, _ = cls.get_config_dict(folder, revision=revision)
        return super().from_dict(config_dict, **kwargs)
