"""The layouts of BAGEL checkpoints: reading those that we did not save, mapping key names, and converting one layout
to another.

| layout | weights | autoencoder | settings |
|---|---|---|---|
| official | `ema.safetensors` | `ae.safetensors` | `llm_config.json`, `vit_config.json`, or in one `config.json` |
| sharded | `model-*-of-*.safetensors`, with or without an index | `ae.safetensors` | the same |
| ours | `model.safetensors` or shards with an index | in the same files | `config.json` |

All three use the official key names, so one mapping serves loading and saving, as transformers' conversion
mapping: applied on loading, reversed on saving. Only names differ, and the shape of the autoencoder's attention
weights:
1 x 1 convolutions there, linear layers here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    revert_weight_conversion,
)

from uniedit_hf.files import written_folder
from uniedit_hf.models.filled import check_filled

from .checkpoint_bagel import (
    EMA_FILE,
    FOLDER_OPTIONS,
    INDEX_FILES,
    VAE_FILE,
    CheckpointFolder,
    open_safetensors,
    tensor_shapes,
)
from .configuration_bagel import BagelConfig


# option -> the token's name, and its id in the release
TOKENS = {
    "bos_token_id": ("<|im_start|>", 151644),
    "eos_token_id": ("<|im_end|>", 151645),
    "pad_token_id": ("<|endoftext|>", 151643),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
}


def config_dict_of(read_config: Callable, name, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a checkpoint of any layout, and the remaining keyword arguments.

    Raises:
        OSError: If the folder is not a BAGEL checkpoint, or its autoencoder is missing.
    """
    folder = CheckpointFolder(name, kwargs)
    config = folder.json("config.json")
    if config and "llm_config" not in config and not folder.has("llm_config.json"):
        return read_config(name, **kwargs)
    unused = {key: value for key, value in kwargs.items() if key not in (*FOLDER_OPTIONS, "proxies")}
    unused = {key: value for key, value in unused.items() if not key.startswith("_from")}
    return _official_config(folder, config), unused


def _official_config(folder: CheckpointFolder, nested: dict[str, Any]) -> dict[str, Any]:
    """Our configuration from the official files; missing values come from tensor shapes, then from the release."""
    text = nested.get("llm_config") or folder.json("llm_config.json")
    vision = nested.get("vit_config") or folder.json("vit_config.json")
    files = folder.weight_files() if text else []
    if not files:
        raise OSError(
            f"{folder.name} is not a BAGEL checkpoint: expected config.json (ours) or llm_config.json with {EMA_FILE} "
            f"or model-*-of-*.safetensors (official), found {folder.names() or 'an empty folder'}."
        )
    shapes = {key: shape for file in files if folder.has(file) for key, shape in folder.shapes(file).items()}
    config: dict[str, Any] = {"model_type": "bagel", "architectures": ["BagelForConditionalGeneration"]}
    config["text_config"] = {key: value for key, value in text.items() if key not in ("model_type", "architectures")}
    config["vision_config"] = _vision_config(vision, nested, shapes)
    config["vae_config"] = _vae_config(folder, nested.get("vae_config") or {}, shapes)
    config["latent_patch_size"] = nested.get("latent_patch_size") or _latent_patch(config, shapes)
    config["max_latent_size"] = nested.get("max_latent_size") or _table_side(shapes, "latent_pos_embed.pos_embed", 64)
    config["connector_hidden_act"] = nested.get("connector_act", "gelu_pytorch_tanh")
    config["timestep_shift"] = nested.get("timestep_shift", 1.0)
    if nested.get("interpolate_pos"):
        raise ValueError(
            f"config.json of {folder.name} asks for interpolated positions (interpolate_pos), which the released "
            "model does not use and this class does not have: set it to false."
        )
    config |= _token_ids(folder, config["text_config"].get("vocab_size", 152064))
    for option in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config["text_config"][option] = config[option]
    if files[0] != "model.safetensors" and not folder.has(INDEX_FILES[0]) or files == [EMA_FILE]:
        config["transformers_weights"] = INDEX_FILES[1] if folder.has(INDEX_FILES[1]) else files[0]
    return config


def _vision_config(vision: dict, nested: dict, shapes: dict[str, list[int]]) -> dict[str, Any]:
    config = {key: value for key, value in vision.items() if key not in ("model_type", "architectures")}
    stored = {match[1] for key in shapes if (match := re.search(r"^vit_model\..*encoder\.layers\.(\d+)\.", key))}
    if stored:
        config["num_hidden_layers"] = len(stored)
    elif "num_hidden_layers" in config:
        config["num_hidden_layers"] -= 1  # the last layer is listed but neither used nor stored
    side = nested.get("vit_max_num_patch_per_side") or _table_side(shapes, "vit_pos_embed.pos_embed", 70)
    config["image_size"] = side * config.get("patch_size", 14)
    return config


def _vae_config(folder: CheckpointFolder, nested: dict, shapes: dict[str, list[int]]) -> dict[str, Any]:
    if folder.has(VAE_FILE):
        shapes = folder.shapes(VAE_FILE)
    if "encoder.conv_in.weight" not in shapes or "decoder.conv_in.weight" not in shapes:
        raise OSError(
            f"{folder.name} contains no autoencoder: expected {VAE_FILE} next to the weights. Copy it from the base "
            "model's folder; all BAGEL checkpoints share it."
        )
    base = shapes["encoder.conv_in.weight"][0]
    levels = [shapes.get(f"encoder.down.{i}.block.0.conv1.weight", [base])[0] // base for i in range(4)]
    blocks = len([key for key in shapes if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", key)])
    return {
        "base_channels": base,
        "channel_multipliers": levels,
        "num_res_blocks": blocks,
        "z_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": nested.get("scale_factor", 0.3611),
        "shift_factor": nested.get("shift_factor", 0.1159),
    }


def _latent_patch(config: dict, shapes: dict[str, list[int]]) -> int:
    if "vae2llm.weight" not in shapes:
        return 2
    return round((shapes["vae2llm.weight"][1] / config["vae_config"]["z_channels"]) ** 0.5)


def _table_side(shapes: dict[str, list[int]], key: str, released: int) -> int:
    return round(shapes[key][0] ** 0.5) if key in shapes else released


def _token_ids(folder: CheckpointFolder, vocab_size: int) -> dict[str, int | None]:
    """Marker ids by name from the tokenizer's files; without a tokenizer, those of the release if they fit."""
    ids: dict[str, int] = {}
    for index, token in folder.json("tokenizer_config.json").get("added_tokens_decoder", {}).items():
        ids[token["content"]] = int(index)
    if not ids:
        ids = {token["content"]: token["id"] for token in folder.json("tokenizer.json").get("added_tokens", [])}
    found = {option: ids.get(token, released) for option, (token, released) in TOKENS.items()}
    return {option: index if index < vocab_size else None for option, index in found.items()}


def check_loading(info: dict[str, Any], name, any_shape: bool = False) -> None:
    """Refuses a checkpoint that does not fill the model exactly, which transformers would only warn about.

    Args:
        info: The loading report of transformers.
        name: Name of the checkpoint.
        any_shape: Whether tensors of another shape than the model's are allowed and left at random.

    Raises:
        ValueError: Names the tensors.
    """
    problems = []
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    for kind, what in (("missing_keys", "missing from"), ("unexpected_keys", "not known to the model but in")):
        if keys := sorted(to_official(key) for key in set(info[kind]) - mismatched):
            problems.append(f"{_few(keys)} {'is' if len(keys) == 1 else 'are'} {what} {name}")
    for key, stored, expected in [] if any_shape else sorted(info["mismatched_keys"], key=str):
        problems.append(
            f"{to_official(key)} in {name} has shape {tuple(stored)}, but the configuration asks for {tuple(expected)}"
        )
    problems += [str(error) for error in info.get("error_msgs", [])]
    if problems:
        raise ValueError("; ".join(problems) + ". The weights do not match the configuration.")


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more tensors" if len(keys) > 5 else "")


# every part of `BagelModel` except the language model
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
    """Mapping from official key names to ours, in the order in which transformers applies it."""
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


Layout = Literal["official", "transformers"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def convert(input_dir: str, output_dir: str, to: Layout, max_shard_size: str = "5GB") -> None:
    """Writes the checkpoint in `input_dir`, of any layout, to `output_dir` in the layout `to`.

    Args:
        input_dir: A local folder.
        output_dir: A new or empty folder.
        to: `"official"` (`ema.safetensors`, `ae.safetensors`, `llm_config.json`, `vit_config.json`, `config.json`,
            `preprocessor_config.json`), which public servers read, or `"transformers"` (`config.json`,
            `model.safetensors` or shards with an index, `processor_config.json`).
        max_shard_size: Maximum size of a shard in the transformers layout.

    Raises:
        OSError: If `input_dir` is not a checkpoint or `output_dir` is not empty.
        ValueError: If `to` is unknown, or the tensors do not fill the model exactly.
    """
    source, target = Path(input_dir), Path(output_dir)
    if to not in ("official", "transformers"):
        raise ValueError(f"to is {to!r}: choose 'official' or 'transformers'.")
    if not source.is_dir():
        raise OSError(f"input_dir {source} is not a local folder: pass the folder of a checkpoint.")
    if target.exists() and any(target.iterdir()):
        raise OSError(f"output_dir {target} is not empty: name a new folder.")
    config = BagelConfig.from_pretrained(source)
    files = _weight_files(source)
    _check(config, files, source)
    with written_folder(target) as part:
        _write_weights(config, _open(files), part, to, max_shard_size)
        _write_image_settings(config, source, part, to)
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)


def _write_weights(
    config: BagelConfig, tensors: dict[str, torch.Tensor], target: Path, to: Layout, max_shard_size: str
) -> None:
    if to == "official":
        vae = {name for name in tensors if name.startswith(("encoder.", "decoder."))}
        save_file({name: tensors[name] for name in sorted(set(tensors) - vae)}, target / EMA_FILE)
        save_file({name: tensors[name] for name in sorted(vae)}, target / VAE_FILE)
        _write_official_config(config, target)
    else:
        _write_shards(tensors, target, max_shard_size)
        config.save_pretrained(target)


def _weight_files(source: Path) -> list[Path]:
    folder = CheckpointFolder(source, {})
    files = [Path(path) for path in folder.complete(str(source / name) for name in folder.weight_files())]
    vae = source / VAE_FILE
    return files + ([vae] if vae.is_file() and vae not in files else [])


def _check(config: BagelConfig, files: list[Path], source: Path) -> None:
    """Checks names and shapes against a model without storage."""
    from .modeling_bagel import BagelForConditionalGeneration

    stored = {name: shape for file in files for name, shape in tensor_shapes(file).items()}
    with torch.device("meta"):
        model = BagelForConditionalGeneration(config)
    expected = {name: t.shape for name, t in revert_weight_conversion(model, model.state_dict()).items()}
    check_filled(stored, expected, source)


def _open(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors, memory-mapped and read only when they are written."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with open_safetensors(file) as handle:
            tensors |= {name: handle.get_tensor(name) for name in handle.keys()}
    return tensors


def _write_shards(tensors: dict[str, torch.Tensor], target: Path, max_shard_size: str) -> None:
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for name, keys in tqdm(split.filename_to_tensors.items(), desc="writing"):
        save_file({key: tensors[key] for key in keys}, target / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_image_settings(config: BagelConfig, source: Path, target: Path, to: Layout) -> None:
    """Writes the image sizes into the file of the layout. Servers read the official file as settings of a
    `SiglipImageProcessor`, whose `size` is that of the ViT; our settings are next to it, to restore our processor. If
    there were a `processor_config.json`, servers would read that instead, find no `size`, and use 224 pixels.
    """
    from .processing_bagel import image_processor_of

    image_processor = image_processor_of(CheckpointFolder(source, {}), config)
    settings = image_processor.to_dict()
    if to == "official":
        edge = image_processor.vit_size["longest_edge"]
        siglip = {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": edge, "width": edge},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
        }
        _write_json(settings | siglip, target / "preprocessor_config.json")
    elif (source / "processor_config.json").is_file():
        shutil.copyfile(source / "processor_config.json", target / "processor_config.json")
    else:
        saved = {"image_processor": settings, "processor_class": "BagelProcessor"}
        _write_json(saved, target / "processor_config.json")


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def _write_official_config(config: BagelConfig, target: Path) -> None:
    text, vision, vae = config.text_config, config.vision_config, config.vae_config
    llm = text.to_dict() | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": text.rope_parameters["rope_theta"],
        "qk_norm": True,
        "tie_word_embeddings": False,
    }
    # the official file counts one layer more than exist
    vit = vision.to_dict() | {"model_type": "siglip_vision_model", "num_hidden_layers": vision.num_hidden_layers + 1}
    settings = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "llm_config": llm,
        "vit_config": vit,
        "vae_config": {
            "z_channels": vae.z_channels,
            "downsample": 8,
            "scale_factor": vae.scaling_factor,
            "shift_factor": vae.shift_factor,
        },
        "latent_patch_size": config.latent_patch_size,
        "max_latent_size": config.max_latent_size,
        "vit_max_num_patch_per_side": vision.patches_per_side,
        "connector_act": config.connector_hidden_act,
        "interpolate_pos": False,
        "timestep_shift": config.timestep_shift,
    }
    for name, content in (("llm_config", llm), ("vit_config", vit), ("config", settings)):
        _write_json(content, target / f"{name}.json")
