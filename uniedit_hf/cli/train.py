"""`uniedit train`: tunes a model on one data set or a mix of them.

    uniedit train --model_name_or_path ByteDance-Seed/BAGEL-7B-MoT --dataset_name uniedit-148k --output_dir runs/bagel
    accelerate launch -m uniedit_hf.cli train --config examples/train/bagel_full.yaml

The settings of a run are those of `UniEditConfig`: transformers' `TrainingArguments` and our own.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uniedit_hf.cli.leaving import leave_processes
from uniedit_hf.cli.option_types import Count, Probability, check_writable
from uniedit_hf.files import disk_errors_name
from uniedit_hf.recipes import READ_COLUMNS, RECIPES
from uniedit_hf.training.config import UniEditConfig
from uniedit_hf.training.output_folder import check_unused, claimed


if TYPE_CHECKING:
    from uniedit_hf.training import UniEditTrainer


PART_FIELDS = ("name", "config", "split", "test_split", "recipe", "weight")


@dataclass
class DataOptions:
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the training data", "metavar": "NAME"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "its configuration", "metavar": "NAME"})
    dataset_train_split: str = field(default="train", metadata={"help": "the split to train on", "metavar": "NAME"})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "the split to evaluate on", "metavar": "NAME"}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "stream the training data"})
    datasets: dict | str | None = field(
        default=None,
        metadata={
            "help": "a mix: a label for each part with name, config, split, test_split, recipe and weight",
            "metavar": "JSON",
        },
    )


@dataclass
class ModelOptions:
    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the model", "metavar": "NAME"})
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = field(
        default=None,
        metadata={"help": "dtype of the weights and optimizer states; float32 on a CPU; on a GPU the plan decides"},
    )
    attn_implementation: Literal["sdpa", "flex_attention", "eager"] | None = field(
        default=None, metadata={"help": "attention of the language model"}
    )
    use_peft: bool = field(default=False, metadata={"help": "train LoRA adapters instead of the weights"})
    lora_r: Count = field(default=16, metadata={"help": "rank of the adapters"})
    lora_alpha: Count = field(default=32, metadata={"help": "alpha of the adapters; their scale is alpha / rank"})
    lora_dropout: Probability = field(default=0.0, metadata={"help": "dropout on adapter inputs"})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "layers to adapt; by default the linear layers of both experts"}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "store the weights in 4 bit (NF4), for adapters"})
    load_in_8bit: bool = field(default=False, metadata={"help": "store the weights in 8 bit, for adapters"})


def run(model: ModelOptions, data: DataOptions, training: UniEditConfig) -> None:
    from uniedit_hf.training import UniEditTrainer

    run_trainer(UniEditTrainer, model, data, training)


def run_trainer(
    make_trainer: Callable[..., UniEditTrainer], model: ModelOptions, data: DataOptions, training: UniEditConfig
) -> None:
    """Runs a trainer from its options to the saved model.

    Args:
        make_trainer: Called with the arguments of `UniEditTrainer`.
        model: Options of the model.
        data: Options of the data.
        training: Settings of the run.
    """
    from uniedit_hf.training import UniEditTrainer

    adapters = _adapters(model)
    options = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    training.model_init_kwargs = {name: each for name, each in options.items() if each is not None} | (
        training.model_init_kwargs or {}
    )
    if training.plan == "show":
        print(UniEditTrainer.plan(model.model_name_or_path, training, adapters))
        return
    if "output_dir" in training.left_open:
        raise ValueError("output_dir is missing: name a folder for checkpoints and the model, as in runs/bagel.")
    quantization = _quantization(model)
    check_writable(training.output_dir, f"output_dir {training.output_dir}")
    with disk_errors_name(training.output_dir), claimed(training.output_dir):
        checkpoint = _checkpoint(training.resume_from_checkpoint)
        if checkpoint is None:
            check_unused(training.output_dir)
        train_dataset, eval_dataset = _data_sets(data, training)
        trainer = make_trainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            quantization_config=quantization,
            peft_config=adapters,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        names = [data.dataset_name] if data.dataset_name else [part["name"] for part in _mix(data).values()]
        _finish(trainer, names)
    leave_processes()


def _finish(trainer: UniEditTrainer, dataset_names: list[str]) -> None:
    """Saves the model and its card, and pushes them if asked to, if the run is complete.

    Raises:
        KeyboardInterrupt: If Ctrl-C stopped the run; a checkpoint was written.
    """
    state, folder = trainer.state, trainer.args.output_dir
    if state.global_step < state.max_steps:
        if trainer.is_world_process_zero():
            print(
                f"Stopped after step {state.global_step} of {state.max_steps}: resume with "
                "--resume_from_checkpoint true."
            )
        if trainer.stop_signal.received == signal.SIGINT:
            leave_processes(130)
            raise KeyboardInterrupt
        return
    if trainer.first_step >= state.max_steps:
        if trainer.is_world_process_zero():
            print(
                f"0 new steps: the run in {folder} had reached step {trainer.first_step} of {state.max_steps}, and "
                "nothing was changed. Raise max_steps or num_train_epochs to continue, or name another output_dir."
            )
        return
    on_hub = [name for name in dataset_names if not Path(name).exists()]
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card(dataset_name=on_hub)
    pushed = trainer.push_to_hub(dataset_name=on_hub) if trainer.args.push_to_hub else None
    if trainer.is_world_process_zero():
        resumed = f" ({state.global_step - trainer.first_step} new ones)" if trainer.first_step else ""
        print(f"Trained {state.global_step} steps{resumed}; the model is in {folder}.")
        if pushed is not None:
            _print_pushed(trainer)


def _print_pushed(trainer: UniEditTrainer) -> None:
    """Says where the model is on the Hub, and whether others can load it."""
    from huggingface_hub import constants
    from peft import PeftModel

    print(f"Pushed to {constants.ENDPOINT}/{trainer.hub_model_id}.")
    base = trainer.model.get_base_model().config.name_or_path if isinstance(trainer.model, PeftModel) else ""
    if base and Path(base).exists():
        print(
            f"Its adapters need their base, {base}, which is only on this machine. For others, train on a base from "
            "the Hub, or upload both as one model with "
            f'UniEditPipeline.from_pretrained("{trainer.args.output_dir}").merge_adapters().push_to_hub("USER/NAME").'
        )


def _checkpoint(value: str | None) -> str | bool | None:
    return {"true": True, "false": None}.get((value or "false").lower(), value)


# --- data -----------------------------------------------------------------------------------------------------------


def _data_sets(data: DataOptions, training: UniEditConfig):
    """Training and evaluation data for the trainer."""
    from uniedit_hf.hub import load_split

    if (data.dataset_name is None) == (data.datasets is None):
        raise ValueError("Training needs data: give dataset_name or, for a mix of several, datasets; one of the two.")
    if data.dataset_name is not None:
        name, config, test_split = data.dataset_name, data.dataset_config, data.dataset_test_split
        train = load_split(name, config, data.dataset_train_split, data.dataset_streaming, READ_COLUMNS)
        return train, None if test_split is None else load_split(name, config, test_split)
    if data.dataset_streaming or data.dataset_config or data.dataset_test_split:
        raise ValueError(
            "dataset_streaming, dataset_config and dataset_test_split belong to dataset_name: a mix is not streamed, "
            "and its parts have config and test_split of their own."
        )
    train, test = [], {}
    for label, part in _mix(data).items():
        train.append(_part(label, part, part.get("split", "train"), training))
        if "test_split" in part:
            test[label] = _part(label, part, part["test_split"], training)
    return train, test or None


def _mix(data: DataOptions) -> dict[str, dict]:
    """The settings of each part of a mix, by label."""
    try:
        mix = json.loads(data.datasets) if isinstance(data.datasets, str) else data.datasets
    except json.JSONDecodeError as error:
        raise ValueError(f"datasets is not valid JSON: {error}.") from error
    if not isinstance(mix, dict) or not mix or not all(isinstance(part, dict) for part in mix.values()):
        raise ValueError("datasets must give each part a label and settings, as in `edits: {name: uniedit-148k}`.")
    for label, part in mix.items():
        for key in part:
            if key not in PART_FIELDS:
                raise ValueError(f"datasets: {label} has no setting {key!r}: use {', '.join(PART_FIELDS)}.")
        if "name" not in part:
            raise ValueError(f"datasets: {label} has no name: give the Hub id or the folder of the data.")
    return mix


def _part(label: str, part: dict, split: str, training: UniEditConfig):
    from uniedit_hf.hub import load_split
    from uniedit_hf.training import TrainingPart

    recipe, weight = part.get("recipe", training.recipe), part.get("weight", 1)
    if recipe not in RECIPES:
        raise ValueError(f"datasets: the recipe of {label} is {recipe!r}: use one of {', '.join(RECIPES)}.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0:
        raise ValueError(f"datasets: the weight of {label} is {weight!r}: use a number above 0.")
    dataset = load_split(part["name"], part.get("config"), split)
    return TrainingPart(dataset, training.make_recipe(recipe), weight)


# --- model ----------------------------------------------------------------------------------------------------------


def _adapters(model: ModelOptions):
    from peft import LoraConfig

    if not model.use_peft:
        return None
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules,
    )


def _quantization(model: ModelOptions):
    """The quantization of the weights under the adapters; `None` for none."""
    from uniedit_hf.training.quantization import quantized_weights

    if not model.load_in_4bit and not model.load_in_8bit:
        return None
    name = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    if model.load_in_4bit and model.load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit are both set: choose one.")
    if not model.use_peft:
        raise ValueError(f"{name} stores weights that cannot be trained: set use_peft to train adapters on them.")
    return quantized_weights(4 if model.load_in_4bit else 8, model.dtype)
