"""Converts the official layout of Janus-Pro (`model_type` `multi_modality`, deepseek-ai) to that of transformers.

Weights are read from safetensors only. The released repositories contain pickles (`pytorch_model.bin`), which are
never opened here; deepseek-community's repositories have the same weights as safetensors, in the layout of
transformers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    JanusConfig,
    JanusImageProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from uniedit_hf.files import written_folder
from uniedit_hf.models.filled import check_filled

from .modeling_janus import JanusForConditionalGeneration
from .processing_janus import JanusProcessor


BLOCKS, LAYERS = r"vision_model\.vision_tower\.blocks\.(\d+)", r"model.vision_model.encoder.layers.\1"
# Official name -> ours, first match; `None` for tensors that the model does not use.
RENAMED: tuple[tuple[str, str | None], ...] = (
    (r"vision_model\.vision_tower\.attn_pool\..*", None),
    (r"gen_vision_model\.quantize\.codebook_used", None),
    (BLOCKS + r"\.attn\.proj\.", LAYERS + ".self_attn.projection_layer."),
    (BLOCKS + r"\.attn\.", LAYERS + ".self_attn."),
    (BLOCKS + r"\.norm(\d)\.", LAYERS + r".layer_norm\2."),
    (BLOCKS, LAYERS),
    (r"vision_model\.vision_tower\.pos_embed$", r"model.vision_model.embeddings.position_embedding.weight"),
    (r"vision_model\.vision_tower\.patch_embed\.proj\.", r"model.vision_model.embeddings.patch_embedding."),
    (r"vision_model\.vision_tower\.norm\.", r"model.vision_model.post_layernorm."),
    (r"gen_vision_model\.", r"model.vqmodel."),
    (r"gen_aligner\.layers\.0\.", r"model.generation_aligner.fc1."),
    (r"gen_aligner\.layers\.2\.", r"model.generation_aligner.hidden_layers.0."),
    (r"aligner\.layers\.0\.", r"model.aligner.fc1."),
    (r"aligner\.layers\.2\.", r"model.aligner.hidden_layers.0."),
    (r"gen_head\.output_mlp_projector\.", r"model.generation_head.proj_out."),
    (r"gen_head\.vision_head\.", r"model.generation_head.vision_head."),
    (r"gen_embed\.", r"model.generation_embeddings."),
    (r"language_model\.lm_head\.", r"lm_head."),
    (r"language_model\.model\.", r"model.language_model."),
)  # fmt: skip
# Within the autoencoder.
RENAMED_IN_VQ = (
    (r"\.decoder\.conv_blocks\.", ".decoder.up."),
    (r"\.encoder\.conv_blocks\.", ".encoder.down."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
MARKERS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


def our_name(name: str) -> str | None:
    """The name of an official tensor in transformers' layout, `None` if it is not used there.

    Raises:
        ValueError: If there is no such tensor.
    """
    for pattern, ours in RENAMED:
        if re.match(pattern, name):
            renamed = None if ours is None else re.sub(rf"^{pattern}", ours, name)
            break
    else:
        raise ValueError(f"The tensor {name!r} is not one of Janus-Pro's: this is another model, or another version.")
    if renamed is not None and renamed.startswith("model.vqmodel."):
        for pattern, ours in RENAMED_IN_VQ:
            renamed = re.sub(pattern, ours, renamed)
    return renamed


def convert_official(input_dir: str | Path, output_dir: str | Path) -> None:
    """Writes an official checkpoint in transformers' layout, with its processor.

    Args:
        input_dir: A folder with `config.json`, the tokenizer and safetensors.
        output_dir: A new or empty folder.

    Raises:
        OSError: If weights or files are missing, or `output_dir` is not empty.
        ValueError: If the tensors do not fill the model exactly.
    """
    source, target = Path(input_dir), Path(output_dir)
    if target.exists() and any(target.iterdir()):
        raise OSError(f"output_dir {target} is not empty: name a new folder.")
    tensors = _tensors(source)
    processor = _processor(source)
    config = _config(source, processor, tensors)
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_filled({name: tensor.shape for name, tensor in tensors.items()}, expected, source)
    model.load_state_dict(tensors, assign=True)
    marks = processor.markers
    model.generation_config = GenerationConfig(
        bos_token_id=marks.bos, eos_token_id=marks.eos, pad_token_id=marks.pad, guidance_scale=5.0, temperature=1.0,
        do_sample=True, generation_kwargs={"boi_token_id": marks.begin},
    )  # fmt: skip
    with written_folder(target) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def _tensors(source: Path) -> dict[str, torch.Tensor]:
    files = sorted(source.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in source.glob("*.bin"))
        found = f"only {', '.join(pickles)}, which can run code when it is opened" if pickles else "no weights"
        raise OSError(
            f"{source} contains {found}, but safetensors are needed: take the same model from deepseek-community, "
            "or a "
            "revision of this one with safetensors."
        )
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():
                renamed = our_name(name)
                if renamed is not None:
                    tensors |= _split(renamed, handle.get_tensor(name))
    return tensors


def _split(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Queries, keys and values of the encoder are one tensor officially; its positions have a batch of one."""
    if ".self_attn.qkv." in name:
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3))
        return {name.replace("qkv", part): each.contiguous() for part, each in parts}
    return {name: tensor.squeeze(0) if name.endswith("position_embedding.weight") else tensor}


def _processor(source: Path) -> JanusProcessor:
    stored = json.loads((source / "preprocessor_config.json").read_text())
    settings = {
        name: stored[name] for name in ("image_mean", "image_std", "min_size", "rescale_factor") if name in stored
    }
    size = stored.get("image_size", 384)
    images = JanusImageProcessor(size={"height": size, "width": size}, **settings)
    tokenizer = AutoTokenizer.from_pretrained(source, extra_special_tokens=MARKERS)
    vision = json.loads((source / "config.json").read_text())["vision_config"]["params"]
    count = (vision["image_size"] // _patch_size(vision)) ** 2
    return JanusProcessor(images, tokenizer, use_default_system_prompt=True, num_image_tokens=count)


def _patch_size(vision: dict) -> int:
    return int(re.search(r"patch(\d+)", vision["model_name"]).group(1))


def _config(source: Path, processor: JanusProcessor, tensors: dict[str, torch.Tensor]) -> JanusConfig:
    """The official configuration says little about the encoders; the rest comes from the shapes of the tensors."""
    stored = json.loads((source / "config.json").read_text())
    known = set(LlamaConfig().to_dict())
    text = {
        name: value for name, value in stored["language_config"].items() if name in known - {"torch_dtype", "dtype"}
    }
    marks = processor.markers
    text |= {"bos_token_id": marks.bos, "eos_token_id": marks.eos, "pad_token_id": marks.pad}
    if "hidden_size" not in text:
        text["hidden_size"] = tensors["lm_head.weight"].shape[1]
    encoder = "model.vision_model.encoder.layers."
    hidden, mlp = tensors[f"{encoder}0.mlp.fc1.weight"].shape[::-1]
    vision = JanusVisionConfig(
        hidden_size=hidden,
        mlp_ratio=mlp / hidden,
        num_hidden_layers=_count(tensors, encoder),
        num_attention_heads=max(1, hidden // 64),
        image_size=stored["vision_config"]["params"]["image_size"],
        patch_size=_patch_size(stored["vision_config"]["params"]),
        projection_dim=stored["aligner_config"]["params"]["n_embed"],
        depth=stored["aligner_config"]["params"]["depth"],
        num_image_tokens=processor.num_image_tokens,
    )
    base = tensors["model.vqmodel.encoder.conv_in.weight"].shape[0]
    levels = _count(tensors, "model.vqmodel.encoder.down.")
    widths = [tensors[f"model.vqmodel.encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    vq = JanusVQVAEConfig(
        embed_dim=stored["gen_vision_config"]["params"]["n_embed"],
        num_embeddings=stored["gen_vision_config"]["params"]["image_token_size"],
        projection_dim=stored["gen_aligner_config"]["params"]["n_embed"],
        num_hidden_layers=stored["gen_aligner_config"]["params"]["depth"],
        image_token_embed_dim=stored["gen_head_config"]["params"]["image_token_embed"],
        base_channels=base,
        channel_multiplier=[width // base for width in widths],
        num_res_blocks=_count(tensors, "model.vqmodel.encoder.down.0.block."),
        latent_channels=tensors["model.vqmodel.quant_conv.weight"].shape[1],
    )
    return JanusConfig(
        text_config=LlamaConfig(**text), vision_config=vision, vq_config=vq, image_token_id=marks.placeholder,
        tie_word_embeddings=False, dtype=tensors["lm_head.weight"].dtype,
    )  # fmt: skip


def _count(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    """The number of numbered parts after a prefix."""
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))
