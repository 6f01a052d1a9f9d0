"""Sharded checkpoints: every device writes its part, by torch's distributed checkpoint in safetensors files. They can
be read on any number of devices; `consolidate` makes one model in the usual layout of them.

    checkpoint-500/sharded/shard-00001-model-00001-of-00001.safetensors    tensors: model., optimizer. and average.
                           state.json                                      values that are not tensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor


FOLDER = "sharded"
STATE_FILE = "state.json"
MODEL, OPTIMIZER, AVERAGE = "model.", "optimizer.", "average."
GROUP_SETTINGS = ("lr", "initial_lr")


def is_sharded_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint is sharded."""
    return Path(folder, FOLDER).is_dir()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor on this device."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, gathered from all devices, which must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_sharded(
    folder: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer, average: Mapping | None
) -> None:
    """Writes this device's part of a checkpoint; all devices must call it together.

    Args:
        folder: Folder of the checkpoint.
        model: Sharded or not. With adapters, only trained weights are written.
        optimizer: The optimizer of its parameters.
        average: Averaged weights by name, if any.

    Raises:
        ValueError: If an optimizer state cannot be stored in safetensors.
    """
    tensors = _model_tensors(model) | _optimizer_tensors(model, optimizer) | _average_tensors(average)
    place = Path(folder, FOLDER)
    place.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
    distributed_checkpoint.save(tensors, storage_writer=writer, no_dist=not torch.distributed.is_initialized())
    groups = [
        {name: float(group[name]) for name in GROUP_SETTINGS if name in group} for group in optimizer.param_groups
    ]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        Path(place, STATE_FILE).write_text(json.dumps({"groups": groups}))


def load_model(folder: str | os.PathLike, model: nn.Module) -> None:
    """Reads the weights of a sharded checkpoint into a model, sharded in any way or not at all.

    Raises:
        ValueError: If the checkpoint is of another model.
    """
    _load(folder, _model_tensors(model))


def load_optimizer(folder: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads the states of an optimizer in place.

    Raises:
        ValueError: If the checkpoint was made with other trained parameters or another optimizer.
    """
    stored = _stored_sizes(folder)
    for name, parameter in _trained(model):
        prefix = f"{OPTIMIZER}{name}."
        state = optimizer.state[parameter]
        for key in [each.removeprefix(prefix) for each in stored if each.startswith(prefix)]:
            scalar = not stored[prefix + key]
            state[key] = torch.zeros(()) if scalar else torch.zeros_like(parameter, requires_grad=False)
    _load(folder, _optimizer_tensors(model, optimizer))
    settings = json.loads(Path(folder, FOLDER, STATE_FILE).read_text())["groups"]
    for group, values in zip(optimizer.param_groups, settings):
        for name, value in values.items():
            if isinstance(group.get(name), torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


def load_average(folder: str | os.PathLike, average: Mapping[str, torch.Tensor]) -> None:
    """Reads an average of the weights in place.

    Raises:
        ValueError: If the checkpoint has no average.
    """
    _load(folder, _average_tensors(average))


def consolidate(folder: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """Writes the model of a sharded checkpoint in the usual layout, and its average under `ema`.

    Args:
        folder: The checkpoint, of full weights and not of adapters.
        output_dir: Folder for the model, with processor and configuration.

    Raises:
        ValueError: If the folder is not a sharded checkpoint, or is one of adapters.
    """
    from uniedit_hf.models.loading import empty_model, load_config, load_processor

    if not is_sharded_checkpoint(folder):
        raise ValueError(f"{folder} is not a sharded checkpoint: it has no folder {FOLDER!r}.")
    config = load_config(folder)
    model = empty_model(config).to_empty(device="cpu")
    stored = _stored_sizes(folder)
    _load(folder, _model_tensors(model))
    model.save_pretrained(output_dir)
    load_processor(folder, config).save_pretrained(output_dir)
    averaged = {name: parameter.detach() for name, parameter in model.named_parameters() if AVERAGE + name in stored}
    if averaged:
        full = {name: torch.empty_like(weight, dtype=torch.float32) for name, weight in averaged.items()}
        load_average(folder, full)
        for name, weight in averaged.items():
            weight.copy_(full[name])
        model.save_pretrained(Path(output_dir, "ema"))


# --- what is written ------------------------------------------------------------------------------------------------


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, each) for name, each in model.named_parameters() if each.requires_grad]


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights by name; with adapters only the trained ones."""
    adapters = hasattr(model, "peft_config")
    named = _trained(model) if adapters else model.state_dict(keep_vars=True).items()
    return {MODEL + name: tensor.detach() for name, tensor in named}


def _optimizer_tensors(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in _trained(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if type(local_part(value)) is not torch.Tensor:
                raise ValueError(
                    f"The state {key!r} of {type(optimizer).__name__} is a {type(local_part(value)).__name__}, "
                    "which a sharded checkpoint cannot store: use optim='adamw_torch_fused', or save_strategy='no'."
                )
            tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return tensors


def _average_tensors(average: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    return {AVERAGE + name: tensor for name, tensor in (average or {}).items()}


# --- what is read ---------------------------------------------------------------------------------------------------


def _stored_sizes(folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    metadata = HuggingFaceStorageReader(str(Path(folder, FOLDER))).read_metadata()
    return {name: tuple(each.size) for name, each in metadata.state_dict_metadata.items()}


def _load(folder: str | os.PathLike, tensors: dict[str, torch.Tensor]) -> None:
    """Reads into tensors in place.

    Raises:
        ValueError: If one of them is missing or has another shape.
    """
    stored = _stored_sizes(folder)
    for name, tensor in tensors.items():
        if name not in stored:
            kind = name.partition(".")[0]
            raise ValueError(
                f"{folder} holds no {kind} tensor {name.partition('.')[2]!r}: it was saved by a run that trained "
                "something else, or one of its files is missing."
            )
        if stored[name] != tuple(tensor.shape):
            raise ValueError(
                f"{folder} holds {name} with the shape {stored[name]}, but this run needs {tuple(tensor.shape)}: it "
                "was saved from another model, or one of its files is missing."
            )
    reader = HuggingFaceStorageReader(str(Path(folder, FOLDER)))
    distributed_checkpoint.load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
