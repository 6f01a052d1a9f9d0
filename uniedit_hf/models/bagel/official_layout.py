"""Reading checkpoints that were not saved by us: the official folder and sharded releases with official key names.

| layout | weights | autoencoder | settings |
|---|---|---|---|
| official | `ema.safetensors` | `ae.safetensors` | `llm_config.json`, `vit_config.json`, or in one `config.json` |
| sharded | `model-*-of-*.safetensors`, with or without an index | `ae.safetensors` | the same |
| ours | `model.safetensors` or shards with an index | in the same files | `config.json` |

All three carry the official key names, so one mapping of names (see `key_mapping`) serves loading and saving.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import parse_safetensors_file_metadata
from transformers.utils import cached_file
from transformers.utils.hub import has_file

from .key_mapping import to_official
from .stored_tensors import open_safetensors


EMA_FILE, VAE_FILE = "ema.safetensors", "ae.safetensors"
INDEX_FILES = ("model.safetensors.index.json", "ema.safetensors.index.json")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# option -> the token's name, and its id in the release
TOKENS = {
    "bos_token_id": ("<|im_start|>", 151644),
    "eos_token_id": ("<|im_end|>", 151645),
    "pad_token_id": ("<|endoftext|>", 151643),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CheckpointFolder:
    """The files of a checkpoint, in a local folder or a Hub repository. Weights are asked for their headers only."""

    def __init__(self, name: str, options: dict[str, Any]):
        self.name = str(name)
        self.options = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
        self.local = Path(self.name, self.options.get("subfolder", "")) if os.path.isdir(self.name) else None

    def has(self, file: str) -> bool:
        """Whether the checkpoint holds this file."""
        if self.local is not None:
            return (self.local / file).is_file()
        known = ("cache_dir", "local_files_only", "token", "revision")
        return has_file(self.name, file, **{key: value for key, value in self.options.items() if key in known})

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file, or an empty dictionary if there is none.

        Raises:
            ValueError: If the file is no JSON.
        """
        path = cached_file(self.name, file, _raise_exceptions_for_missing_entries=False, **self.options)
        if path is None:
            return {}
        try:
            return json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no valid JSON ({error}): restore the file of the release.") from error

    def shapes(self, file: str) -> dict[str, list[int]]:
        """Names and shapes of the tensors in a safetensors file."""
        if self.local is not None:
            return tensor_shapes(self.local / file)
        options = {key: self.options[key] for key in ("revision", "token") if key in self.options}
        header = parse_safetensors_file_metadata(self.name, file, **options)
        return {name: list(tensor.shape) for name, tensor in header.tensors.items()}

    def weight_files(self) -> list[str]:
        """The files with the model's weights, the autoencoder's aside."""
        if self.has(EMA_FILE):
            return [EMA_FILE]
        for index in INDEX_FILES:
            if self.has(index):
                return sorted(set(self.json(index).get("weight_map", {}).values()) - {VAE_FILE})
        if self.local is not None:
            return sorted(path.name for path in self.local.glob("*.safetensors") if SHARD.fullmatch(path.name)) or [
                path.name for path in self.local.glob("model.safetensors")
            ]
        return ["model.safetensors"] if self.has("model.safetensors") else []


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a local safetensors file, from its header.

    Raises:
        OSError: If the file is missing or no complete safetensors file.
    """
    with open_safetensors(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


def config_dict_of(read_config: Callable, name, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a checkpoint of any layout, and the keyword arguments that are none of its business.

    Raises:
        OSError: If the folder is no BAGEL checkpoint, or its autoencoder is missing.
    """
    folder = CheckpointFolder(name, kwargs)
    if not folder.has("llm_config.json") and (folder.local is None or folder.has("config.json")):
        config, unused = read_config(name, **kwargs)
        if "llm_config" not in config:
            return config, unused
        return _official_config(folder, config), unused
    unused = {key: value for key, value in kwargs.items() if key not in (*HUB_OPTIONS, "proxies")}
    unused = {key: value for key, value in unused.items() if not key.startswith("_from")}
    return _official_config(folder, folder.json("config.json")), unused


def _official_config(folder: CheckpointFolder, nested: dict[str, Any]) -> dict[str, Any]:
    """Our configuration from the official files; what they lack comes from tensor shapes, then from the release."""
    text = nested.get("llm_config") or folder.json("llm_config.json")
    vision = nested.get("vit_config") or folder.json("vit_config.json")
    files = folder.weight_files()
    if not text or not files:
        found = sorted(path.name for path in folder.local.iterdir()) if folder.local else "other files"
        raise OSError(
            f"{folder.name} is no BAGEL checkpoint: expected config.json (ours) or llm_config.json with {EMA_FILE} or "
            f"model-*-of-*.safetensors (official), found {found or 'an empty folder'}."
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


def complete_files(files: Iterable[str]) -> list[str]:
    """All files of a checkpoint, given those that transformers found: adds the shards that no index lists.

    Raises:
        OSError: If a shard is missing; the message names it.
    """
    complete: dict[str, None] = {}
    for file in files:
        folder, name = os.path.split(file)
        shard = SHARD.fullmatch(name)
        names = [name]
        if shard:
            numbers = range(1, int(shard["count"]) + 1)
            names = [f"{shard['stem']}-{number:05d}-of-{shard['count']}.safetensors" for number in numbers]
        complete |= dict.fromkeys(os.path.join(folder, name) for name in names)
    missing = [path for path in complete if not os.path.isfile(path)]
    if missing:
        raise OSError(f"{', '.join(missing)} is missing: the checkpoint is incomplete, download it again.")
    return list(complete)


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
