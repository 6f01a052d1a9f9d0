"""Refuses settings that cannot work together before anything is loaded or trained, naming the argument to change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable
from peft import PeftModel

from uniedit_hf.compat import stream_steps
from uniedit_hf.models.family import check_family

from .config import UniEditConfig
from .data import TrainingPart
from .optimizers import PACKAGES
from .planning import PartLengths


# Arguments of transformers' Trainer that make no sense with packs -> what to use instead.
INSTEAD = {
    "compute_metrics": "evaluate() returns the losses; `uniedit evaluate` measures what a model draws and writes",
    "compute_loss_func": "the losses are the model's; weigh them with image_loss_weight and text_loss_weight",
    "data_collator": "rows become packs by recipe and processor: write a recipe, or subclass the processor",
    "model_init": "make a trainer for every trial, each with a model of its own",
    "preprocess_logits_for_metrics": "evaluate() returns the losses and keeps no logits",
}


def check_arguments(unsupported: dict) -> None:
    """Refuses arguments of transformers' `Trainer` that would be ignored.

    Raises:
        ValueError: Names the argument, and what to use instead.
        TypeError: If `Trainer` does not have the argument either.
    """
    for name, value in unsupported.items():
        if name not in INSTEAD:
            raise TypeError(f"UniEditTrainer has no argument {name!r}: see its docstring for those it has.")
        if value is not None:
            raise ValueError(f"UniEditTrainer takes no {name}: {INSTEAD[name]}.")


def check_devices(args: UniEditConfig) -> None:
    """Checks that one process uses one device."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, which would replicate the model in threads: start with `accelerate "
            "launch`, or show the process one GPU with CUDA_VISIBLE_DEVICES."
        )


def check_sharding(args: UniEditConfig) -> None:
    """Refuses optimizers whose states a sharded checkpoint cannot store."""
    requested = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    # accelerate shards only over several accelerators
    if not requested or args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        return
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in PACKAGES and args.save_strategy != "no":
        raise ValueError(
            f"optim={optim!r} keeps quantized states, which checkpoints under FSDP cannot store: use "
            "optim='adamw_torch_fused', whose states FSDP spreads, or save_strategy='no'."
        )


def check_output_dir(args: UniEditConfig) -> None:
    """Checks that the output folder exists or can be created."""
    folder = Path(args.output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(
            f"output_dir is {args.output_dir}, but {there} is a file: name another folder, or move the file away."
        )


def check_recipe(args: UniEditConfig) -> None:
    """Checks that the recipe has something to learn, and that the loss it needs has a weight."""
    writes = args.recipe in ("answer", "interleaved") or args.thinking_loss
    draws = args.recipe != "answer"
    if args.text_loss_weight and not writes:
        raise ValueError(
            f"text_loss_weight is {args.text_loss_weight}, but no text of the recipe {args.recipe!r} carries a loss: "
            "set text_loss_weight=0, thinking_loss=True, or recipe='answer' or 'interleaved'."
        )
    if not draws and not args.text_loss_weight:
        raise ValueError(f"recipe={args.recipe!r} learns to write, but text_loss_weight is 0: raise text_loss_weight.")
    if not writes and not args.image_loss_weight:
        raise ValueError(
            f"recipe={args.recipe!r} learns to draw, but image_loss_weight is 0: raise image_loss_weight."
        )


def check_learned(lengths: Sequence[PartLengths], args: UniEditConfig) -> None:
    """Checks that every part of the data has a loss with a weight."""
    if args.text_loss_weight and not any(part.has_text_loss for part in lengths):
        raise ValueError(
            f"text_loss_weight is {args.text_loss_weight}, but no text of the training data carries a loss: set "
            "text_loss_weight=0 or add data with a text loss."
        )
    for number, part in enumerate(lengths):
        learned = (part.has_text_loss and args.text_loss_weight) or (part.has_image_loss and args.image_loss_weight)
        if any(each is not None for each in part.ids) and not learned:
            name, kind = ("text", "text") if part.has_text_loss else ("image", "images")
            raise ValueError(
                f"Part {number} of the training data teaches {kind} alone, but {name}_loss_weight is 0: raise "
                f"{name}_loss_weight or leave the part out."
            )


def training_parts(train_dataset, recipe) -> list[TrainingPart]:
    """The training data as parts; a single data set uses the recipe of the settings.

    Raises:
        ValueError: If it is of another type.
    """
    if train_dataset is None:
        return []
    if isinstance(train_dataset, (Dataset, IterableDataset)):
        return [TrainingPart(train_dataset, recipe)]
    if isinstance(train_dataset, (list, tuple)) and all(isinstance(part, TrainingPart) for part in train_dataset):
        return list(train_dataset)
    kind = type(train_dataset).__name__
    hint = "; choose a split, as in train_dataset=data['train']" if isinstance(train_dataset, dict) else ""
    raise ValueError(f"train_dataset is a {kind}: give a Dataset, an IterableDataset or a list of TrainingPart{hint}.")


def evaluation_parts(eval_dataset, recipe) -> dict[str, TrainingPart]:
    """The evaluation data as parts by name; a single data set has the empty name.

    Raises:
        ValueError: If it is a stream, or of another type.
    """
    named = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    parts = {}
    for name, dataset in named.items():
        part = TrainingPart(dataset, recipe) if isinstance(dataset, Dataset) else dataset
        if not isinstance(part, TrainingPart) or not isinstance(part.dataset, Dataset):
            kind = type(dataset.dataset if isinstance(dataset, TrainingPart) else dataset).__name__
            raise ValueError(
                f"eval_dataset {name!r} is a {kind}: give a Dataset, which has a length, or a TrainingPart with one, "
                "or a dictionary of these."
            )
        parts[name] = part
    return parts


def check_stream(parts: Sequence[TrainingPart], args: UniEditConfig) -> None:
    """Checks that the run over a stream has an end, that the stream has a state, and that every worker has a file."""
    streams = [part.dataset for part in parts if isinstance(part.dataset, IterableDataset)]
    if not streams:
        return
    if len(parts) > 1:
        raise ValueError(
            "A mix of data sets is planned by their lengths, which streams do not have: load them without "
            "streaming=True, or interleave the streams with datasets.interleave_datasets."
        )
    if args.max_steps <= 0:
        raise ValueError("A stream has no length, so the run needs an end: set max_steps.")
    for name in ("logging_strategy", "eval_strategy", "save_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(f"{name} is 'epoch', but where a stream ends is not known: set {name}='steps'.")
    (stream,) = streams
    if args.dataloader_num_workers > stream.num_shards:
        raise ValueError(
            f"dataloader_num_workers is {args.dataloader_num_workers}, but the stream has {stream.num_shards} file(s) "
            f"to share out: set dataloader_num_workers={stream.num_shards} or less, or store it in more files."
        )
    buffers = (step.buffer_size for step in stream_steps(stream) if isinstance(step, BufferShuffledExamplesIterable))
    buffer = max(buffers, default=1)
    if buffer > 1 and args.save_strategy != "no":
        raise ValueError(
            f"The stream is shuffled through a buffer of {buffer} rows, which no checkpoint stores, so the run could "
            "not be resumed exactly: shuffle the rows once and store them so, use shuffle(buffer_size=1), which "
            "shuffles the files, or set save_strategy='no'."
        )


def check_adapters(model, args: UniEditConfig, peft_config, quantization_config) -> None:
    """Checks that adapters are put on a plain model, and that quantized weights have adapters."""
    if quantization_config is not None and not isinstance(model, str):
        raise ValueError(
            "quantization_config loads a model by name, but model is already loaded: quantize when loading it."
        )
    if quantization_config is not None and peft_config is None:
        raise ValueError("Quantized weights cannot be trained: give peft_config to train adapters on them.")
    if peft_config is not None and isinstance(model, PeftModel):
        raise ValueError("The model already has adapters: leave out peft_config, or merge them first.")
    if isinstance(model, PeftModel) and (args.freeze_und or args.freeze_gen):
        raise ValueError(
            "The model already has adapters, so freeze_und and freeze_gen have no effect: leave them out."
        )
    if not args.freeze_vit and (peft_config is not None or isinstance(model, PeftModel)):
        raise ValueError(
            "freeze_vit=False trains the encoder's weights, but with adapters they stay frozen: leave it out, "
            "or name "
            "the encoder in modules_to_save of the adapters' configuration."
        )


def check_model(model, processor, args: UniEditConfig) -> None:
    """Checks that model and processor implement the contract of a family, and that the settings apply to it."""
    check_family(model, processor)
    for name in ("timestep_shift", "vit_longest_edge", "posterior", "sample_timesteps"):
        if getattr(args, name) != type(args).__dataclass_fields__[name].default and name not in model.training_options:
            raise ValueError(
                f"{name} is {getattr(args, name)}, but {type(model).__name__} has no use for it: leave it out."
            )
    if args.vit_longest_edge is not None and args.vit_longest_edge > model.config.vision_config.image_size:
        raise ValueError(
            f"vit_longest_edge is {args.vit_longest_edge}, but the encoder has positions for "
            f"{model.config.vision_config.image_size} pixels: lower it."
        )


def check_samples(eval_parts: dict[str, TrainingPart], args: UniEditConfig) -> None:
    """Checks that there is something to draw while training."""
    if args.sample_steps is None:
        return
    if args.recipe not in ("edit", "generate"):
        raise ValueError(
            f"sample_steps draws images, but the recipe {args.recipe!r} produces text only: leave it out, or use "
            "recipe='edit' or 'generate'."
        )
    if not eval_parts:
        raise ValueError("sample_steps draws rows of the evaluation data, but there is none: give eval_dataset.")
    columns = next(iter(eval_parts.values())).dataset.column_names
    for name in ("instruction", "source_image") if args.recipe == "edit" else ():
        if name not in columns:
            raise ValueError(f"sample_steps draws edits, but the evaluation data has no column {name!r}: add it.")
