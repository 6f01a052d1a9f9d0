"""Reading checkpoints that were not saved by us: the official folder and sharded releases with official key names.

| layout | weights | autoencoder | settings |
|---|---|---|---|
| official | `ema.safetensors` | `ae.safetensors` | `llm_config.json`, `vit_config.json`, or in one `config.json` |
| sharded | `model-*-of-*.safetensors`, with or without an index | `ae.safetensors` | the same |
| ours | `model.safetensors` or shards with an index | in the same files | `config.json` |

All three carry the official key names, so one mapping of names (see `key_mapping`) serves loading and saving.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .checkpoint_folder import EMA_FILE, HUB_OPTIONS, INDEX_FILES, VAE_FILE, CheckpointFolder
from .key_mapping import to_official


# option -> the token's name, and its id in the release
TOKENS = {
    "bos_token_id": ("<|im_start|>", 151644),
    "eos_token_id": ("<|im_end|>", 151645),
    "pad_token_id": ("<|endoftext|>", 151643),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
}


def config_dict_of(read_config: Callable, name, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a checkpoint of any layout, and the keyword arguments that are none of its business.

    Raises:
        OSError: If the folder is no BAGEL checkpoint, or its autoencoder is missing.
    """
    folder = CheckpointFolder(name, kwargs)
    config = folder.json("config.json")
    if config and "llm_config" not in config and not folder.has("llm_config.json"):
        return read_config(name, **kwargs)
    unused = {key: value for key, value in kwargs.items() if key not in (*HUB_OPTIONS, "proxies")}
    unused = {key: value for key, value in unused.items() if not key.startswith("_from")}
    return _official_config(folder, config), unused


def _official_config(folder: CheckpointFolder, nested: dict[str, Any]) -> dict[str, Any]:
    """Our configuration from the official files; what they lack comes from tensor shapes, then from the release."""
    text = nested.get("llm_config") or folder.json("llm_config.json")
    vision = nested.get("vit_config") or folder.json("vit_config.json")
    files = folder.weight_files() if text else []
    if not files:
        raise OSError(
            f"{folder.name} is no BAGEL checkpoint: expected config.json (ours) or llm_config.json with {EMA_FILE} or "
            f"model-*-of-*.safetensors (official), found {folder.names() or 'an empty folder'}."
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
            f"{folder.name} holds no autoencoder: expected {VAE_FILE} beside the weights. Copy it from the base "
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


def check_loading(info: dict[str, Any], name) -> None:
    """Refuses a checkpoint that does not fill the model exactly, which transformers would only warn about.

    Raises:
        ValueError: Naming the tensors.
    """
    problems = []
    for kind, what in (("missing_keys", "missing from"), ("unexpected_keys", "not known to the model but in")):
        if keys := sorted(to_official(key) for key in info[kind]):
            problems.append(f"{_few(keys)} {'is' if len(keys) == 1 else 'are'} {what} {name}")
    for key, stored, expected in sorted(info["mismatched_keys"], key=str):
        problems.append(
            f"{to_official(key)} in {name} has shape {tuple(stored)}, but the configuration asks for {tuple(expected)}"
        )
    problems += [str(error) for error in info.get("error_msgs", [])]
    if problems:
        raise ValueError("; ".join(problems) + ". The weights and the configuration do not belong together.")


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more tensors" if len(keys) > 5 else "")
