"""Rewrites a checkpoint in another layout, file to file. The tensors' names and bytes stay as they are, since every
layout carries the official key names; no model is built and nothing is cast."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers.core_model_loading import revert_weight_conversion

from .checkpoint_folder import EMA_FILE, VAE_FILE, CheckpointFolder, tensor_shapes
from .configuration_bagel import BagelConfig
from .stored_tensors import open_safetensors


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
        to: `"official"` (`ema.safetensors`, `ae.safetensors`, `llm_config.json`, `vit_config.json`, `config.json`) or
            `"transformers"` (`config.json`, `model.safetensors` or shards with an index).
        max_shard_size: Of the transformers layout.

    Raises:
        OSError: If `input_dir` is no checkpoint or `output_dir` is not empty.
        ValueError: If `to` is unknown, or the tensors do not fill the model exactly.
    """
    source, target = Path(input_dir), Path(output_dir)
    if to not in ("official", "transformers"):
        raise ValueError(f"to is {to!r}: choose 'official' or 'transformers'.")
    if not source.is_dir():
        raise OSError(f"input_dir {source} is no folder: name the folder of a checkpoint on this machine.")
    if target.exists() and any(target.iterdir()):
        raise OSError(f"output_dir {target} is not empty: name a new folder.")
    config = BagelConfig.from_pretrained(source)
    files = _weight_files(source)
    _check(config, files, source)
    target.mkdir(parents=True, exist_ok=True)
    tensors = _open(files)
    if to == "official":
        vae = {name for name in tensors if name.startswith(("encoder.", "decoder."))}
        save_file({name: tensors[name] for name in sorted(set(tensors) - vae)}, target / EMA_FILE)
        save_file({name: tensors[name] for name in sorted(vae)}, target / VAE_FILE)
        _write_official_config(config, target)
    else:
        _write_shards(tensors, target, max_shard_size)
        config.save_pretrained(target)
    for name in (*TOKENIZER_FILES, "generation_config.json", "preprocessor_config.json", "processor_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _weight_files(source: Path) -> list[Path]:
    folder = CheckpointFolder(source, {})
    files = [Path(path) for path in folder.complete(str(source / name) for name in folder.weight_files())]
    vae = source / VAE_FILE
    return files + ([vae] if vae.is_file() and vae not in files else [])


def _check(config: BagelConfig, files: list[Path], source: Path) -> None:
    """Names and shapes against a model without storage."""
    from .modeling_bagel import BagelForConditionalGeneration

    stored = {name: shape for file in files for name, shape in tensor_shapes(file).items()}
    with torch.device("meta"):
        model = BagelForConditionalGeneration(config)
    expected = {name: list(t.shape) for name, t in revert_weight_conversion(model, model.state_dict()).items()}
    wrong = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{source} does not fill the model its configuration describes: {', '.join(wrong[:5])}{more} are missing, "
            "unknown or of a wrong shape."
        )


def _open(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors, mapped from their files and read only when they are written."""
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


def _write_official_config(config: BagelConfig, target: Path) -> None:
    text, vision, vae = config.text_config, config.vision_config, config.vae_config
    llm = text.to_dict() | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": text.rope_parameters["rope_theta"],
    }
    # the official file counts one layer more than there is
    vit = vision.to_dict() | {"model_type": "siglip_vision_model", "num_hidden_layers": vision.num_hidden_layers + 1}
    settings = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
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
        (target / f"{name}.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
