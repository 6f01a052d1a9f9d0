"""`UniEditTrainer`: transformers' `Trainer` for interleaved text and image losses over packs.

The loop of `Trainer` sees a run as one epoch of packs, starting at the current step: a plan or a stream already gives
the packs in training order, over all epochs.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from uniedit_hf.losses import Losses
from uniedit_hf.models.loading import inner_model, load_model, load_processor

from . import checks
from .callbacks import AverageCallback, ClockCallback, EpochCallback, SampleImagesCallback, StopSignalCallback
from .config import FLASH_ADAMW, UniEditConfig
from .data import PackNotes, PackReader, TrainingPart
from .ema import WeightAverage
from .evaluating import EvaluationMixin
from .following import Choice, checkpointing_of, follow_plan, plan_of
from .freezing import adapted_layers, freeze
from .fsdp import FSDPModule, frozen_encoders, sharded_units, whole_weights
from .layer_options import set_checkpointing
from .loaders import PackLoader, plan_training, training_loader
from .meters import MeteredProgress, Meters, NumberPrinter
from .metrics import SUMMED, RunningSums, loss_means
from .optimizers import check_optimizer, flash_adamw
from .planning import RunPlan
from .progress import DataProgress, load_state
from .publishing import HubMixin
from .resuming import CheckpointMixin
from .ways import Plan


logger = logging.get_logger(__name__)


class NotFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite; the message names step, packs and rows."""


class UniEditTrainer(CheckpointMixin, EvaluationMixin, HubMixin, Trainer):
    r"""Trains a unified multimodal model on image edits, answers, text-to-image samples and interleavings of them.

    Each loss is normalized by its global number of tokens over accumulation, batch and devices, and every random draw
    is a function of (seed, epoch, sample id). So batching, the number of devices and resuming do not change a run.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            A Hub id, a folder in any layout, or a loaded model.
        args ([`UniEditConfig`], *optional*):
            The settings; the paper's by default.
        train_dataset (`Dataset` or `IterableDataset` or `list[TrainingPart]`, *optional*):
            Rows with the columns that the recipe reads, or several data sets with recipes and weights. A stream needs
            `max_steps`.
        eval_dataset (`Dataset` or `TrainingPart` or a dictionary of these, *optional*):
            Rows for the evaluation losses and the sample images.
        processing_class ([`BagelProcessor`] or [`JanusProcessor`], *optional*):
            Loaded from the model's folder or repository if not given.
        callbacks (`list[TrainerCallback]`, *optional*):
            Additional callbacks.
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler to use instead of those of `args`.
        quantization_config (*optional*):
            Quantization to load the model with; only adapters can be trained on it, so `peft_config` is needed.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Train adapters. Without `target_modules`: the linear layers that would be trained without adapters.
        unsupported (*optional*):
            Other arguments of `Trainer` are refused; the error says what to use instead.

    Raises:
        ValueError: If the settings, the model and the data do not match; the message says what to change.

    Example:
        >>> trainer = UniEditTrainer("ByteDance-Seed/BAGEL-7B-MoT", train_dataset=load_dataset("uniedit-148k"))
        >>> trainer.train()
    """

    _name = "Uni-Edit"
    _tag_names = ["uniedit_hf", "uni-edit", "image-editing"]
    _paper = {
        "title": "Uni-Edit: Intelligent Editing Is A General Task For Unified Model Tuning",
        "id": "2605.21487",
    }
    summed_names = SUMMED
    loss_is_scaled_for_ga = True  # we normalize exactly; if unset, Trainer would multiply the loss by the accumulation

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: UniEditConfig | None = None,
        train_dataset: Dataset | IterableDataset | Sequence[TrainingPart] | None = None,
        eval_dataset: Dataset | TrainingPart | dict[str, Dataset | TrainingPart] | None = None,
        processing_class=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config=None,
        peft_config: PeftConfig | None = None,
        **unsupported,
    ):
        checks.check_arguments(unsupported)
        name = model if isinstance(model, str) else model.config.name_or_path
        args = args or UniEditConfig(output_dir=f"{Path(name).name or 'model'}-UniEdit")
        checks.check_devices(args)
        checks.check_sharding(args)
        checks.check_output_dir(args)
        draws = isinstance(train_dataset, (list, tuple)) or args.recipe != "answer"
        if not isinstance(train_dataset, (list, tuple)):
            checks.check_recipe(args)
        self.parts = checks.training_parts(train_dataset, args.make_recipe())
        self.eval_parts = {} if eval_dataset is None else checks.evaluation_parts(eval_dataset, args.make_recipe())
        checks.check_stream(self.parts, args)
        checks.check_adapters(model, args, peft_config, quantization_config)
        checks.check_samples(self.eval_parts, args)
        set_seed(args.seed)
        self.choice: Choice | None = None
        if isinstance(model, str):
            if args.plan == "show" and args.process_index == 0:
                logger.warning(f"{self.plan(model, args, peft_config)}\n")
            self.choice = follow_plan(model, args, peft_config, quantization_config, draws)
            peft_config, quantization_config = self.choice.adapters, self.choice.quantization
            model = _load(model, args, quantization_config)
        check_optimizer(args)
        if processing_class is None:
            processing_class = load_processor(name, inner_model(model).config)
        checks.check_model(inner_model(model), processing_class, args)
        args.set_conditioning(processing_class.make_conditioning(**args.conditioning_overrides))
        self.parts = [part.for_model(processing_class) for part in self.parts]
        self.eval_parts = {name: part.for_model(processing_class) for name, part in self.eval_parts.items()}
        model = _prepare_model(model, args, peft_config, draws)
        self.reader = PackReader(
            _training_processor(processing_class, args), args.draw_seed, args.posterior, args.bad_rows == "quarantine"
        )
        self.data = DataProgress(args, self._plan_data(args))
        self.sums = RunningSums(self.summed_names)
        self.average: WeightAverage | None = None
        self.stop_signal = StopSignalCallback()
        self.begin_evaluations()
        self._step_packs: list[PackNotes] = []
        self._step_losses: list[tuple[torch.Tensor, list[PackNotes]]] = []
        self.first_step = 0
        self._average_from: str | None = None
        self._encoders: list[FSDPModule] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._add_our_callbacks()
        if self.choice is not None and self.choice.sentence is not None and self.is_world_process_zero():
            logger.warning(f"Training {self.choice.sentence}.")
        inner_model(self.model).add_model_tags(self._tag_names)

    @staticmethod
    def plan(model: str, args: UniEditConfig | None = None, peft_config: PeftConfig | None = None) -> Plan:
        """Plans which ways of training fit the devices, and the memory of each, before any weight is loaded.

        Args:
            model: A Hub id or folder; only the configuration is read.
            args: The settings; the paper's by default.
            peft_config: The adapters of ways that train adapters; LoRA of rank 16 by default.

        Returns:
            A [`Plan`]; `print` shows it as a table.
        """
        args = args or UniEditConfig(output_dir="plan")
        return plan_of(model, args, peft_config, args.recipe != "answer")

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: UniEditConfig, model=None) -> tuple:
        """As in `Trainer`, with FlashOptim added."""
        if args.optim == FLASH_ADAMW:
            return flash_adamw(args)
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def _add_our_callbacks(self) -> None:
        self.add_callback(EpochCallback(self.data.epoch_after))
        self.add_callback(ClockCallback(self))
        for inherited, ours in ((ProgressCallback, MeteredProgress), (PrinterCallback, NumberPrinter)):
            if self.pop_callback(inherited) is not None:
                self.add_callback(ours)
        self.add_callback(self.stop_signal)
        if self.args.ema_decay is not None:
            self.add_callback(AverageCallback(self))
        if self.args.sample_steps is not None:
            part = next(iter(self.eval_parts.values()))
            count = min(self.args.num_samples, len(part.dataset))
            self.add_callback(SampleImagesCallback(self, [part.row(number) for number in range(count)]))

    def whole_weights(self):
        """A context in which every device has the full weights, for uses that do not go through `forward`."""
        if not self.is_fsdp_enabled:
            return nullcontext()
        return whole_weights(self.model, self.accelerator.state.fsdp_plugin.reshard_after_forward, self._encoders)

    # --- data ---------------------------------------------------------------------------------------------------

    def _plan_data(self, args: UniEditConfig) -> RunPlan | None:
        """The data that the steps of the run train on, as far as it is known beforehand."""
        return plan_training(self.parts, self.reader, args)

    def hyperparameter_search(self, *_, **__):
        """Not supported, because it makes models with `model_init`.

        Raises:
            ValueError: Always, with what to do instead.
        """
        checks.check_arguments({"model_init": True})

    def get_train_dataloader(self) -> PackLoader:
        """The packs of this process, from the current step to the end of the run."""
        return training_loader(self.parts, self.reader, self.args, self.data, self.first_step)

    def set_initial_training_values(self, args, dataloader):
        """One long epoch with the steps of the plan, or `max_steps`."""
        plan = self.data.plan
        max_steps = args.max_steps if plan is None else len(plan) // self.args.packs_per_step
        num_packs = max_steps * self.args.packs_per_step
        batches = max_steps * args.gradient_accumulation_steps
        return 1, max_steps, num_packs, num_packs, self.args.packs_per_step, batches, max_steps

    def get_batch_samples(self, epoch_iterator, num_batches: int, device) -> tuple[list, dict[str, torch.Tensor]]:
        """The batches of one optimizer step, and the number of tokens with each loss in them over all devices."""
        begun = time.perf_counter()
        self.meters.clock.begin("data")
        batches = self._next_batches(epoch_iterator, num_batches)
        self.meters.clock.begin("other")
        self.sums.add(steps=1, data_wait_seconds=time.perf_counter() - begun)
        counts = torch.tensor([0, 0, self.stop_signal.signaled])
        self._step_losses = []
        self._step_packs = [notes for batch in batches for notes in batch["pack"]]
        for batch in batches:
            counts += torch.tensor([batch.pop("num_text_targets"), batch.pop("num_image_targets"), 0])
        for notes in self._step_packs:
            self.data.note(notes)
            self.sums.add_pack(notes)
        operations = self.meters.operations(notes.work for notes in self._step_packs)
        self.sums.add(useful_operations=operations.useful, all_operations=operations.total)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum")
            self.stop_signal.agreed = bool(counts[2])
        return batches, {"text": counts[0].to(device), "image": counts[1].to(device)}

    def _next_batches(self, epoch_iterator, num_batches: int) -> list[dict[str, Any]]:
        """The batches of the next optimizer step, each with notes and the counts that its losses are divided by."""
        return [next(epoch_iterator) for _ in range(num_batches)]

    def _prepare_input(self, data):
        """Moves a batch to the device; from page-locked memory the copy is asynchronous."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # --- losses -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the loss parts, each a share of its global mean.

        The factor `world_size` undoes the averaging of gradients over devices. Without counts (evaluation) each loss
        is the mean over the batch.
        """
        packs: list[PackNotes] = inputs.pop("pack")
        if num_items_in_batch is not None:
            self.meters.clock.begin("forward")
        for encoder in self._encoders:
            encoder.unshard()
        losses: Losses = model(**inputs)
        if num_items_in_batch is None:
            counts, devices, sums = {"text": losses.text_count, "image": losses.image_count}, 1, self._eval_sums
        else:
            counts, devices, sums = num_items_in_batch, self.args.world_size, self.sums
        text = losses.text_sum / counts["text"].clamp(min=1)
        image = losses.image_sum / counts["image"].clamp(min=1)
        loss = devices * self.args.image_loss_weight * image
        if self.args.text_loss_weight:  # at weight 0 its parameters are frozen, so its backward pass would be wasted
            loss = loss + devices * self.args.text_loss_weight * text
        sums.add_losses(losses)
        sums.add(loss=loss.detach())
        if num_items_in_batch is None:
            self._check_finite([(loss.detach(), packs)])
        else:
            self._step_losses.append((loss.detach(), packs))
            self.meters.clock.begin("backward")
        return (loss, losses) if return_outputs else loss

    def floating_point_ops(self, inputs) -> int:
        """Operations of forward and backward over a batch, without recomputation; `Trainer` sums them in its state."""
        return self.meters.operations(notes.work for notes in inputs["pack"]).useful

    def _clip_grad_norm(self, model):
        self.meters.clock.begin("optimizer")
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of the gradients before they were clipped.

        Losses are looked at here, too: once a step, so that no forward pass waits for the device.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        self._check_finite(self._step_losses)
        # fp16 finds its loss scale by overflowing
        if not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite(f"the gradient norm is {float(norm)}", self._step_packs)
        return norm

    def _check_finite(self, losses: list[tuple[torch.Tensor, list[PackNotes]]]) -> None:
        values = torch.stack([loss for loss, _ in losses]).tolist()
        for value, (_, packs) in zip(values, losses):
            if not math.isfinite(value):
                raise self._not_finite(f"the loss is {value}", packs)

    def _not_finite(self, what: str, packs: list[PackNotes]) -> NotFiniteError:
        where = "; ".join(f"pack {notes.name} with the rows {', '.join(notes.ids)}" for notes in packs)
        return NotFiniteError(
            f"Stopped in step {self.state.global_step + 1}: {what}, at {where}. Look at these rows, lower the "
            "learning rate, or resume from the last checkpoint."
        )

    # --- logs ---------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds losses, speed and data figures since the last log."""
        if "loss" in logs:
            logs |= self._training_logs()
        super().log(logs, start_time)

    def _training_logs(self) -> dict[str, float]:
        seconds, processes = self.sums.seconds, self.args.world_size
        self.sums.add(quarantined_rows=len(self.data.bad_rows))
        self.sums.add(**self.meters.counts())
        sums = self.sums.over_all(self.accelerator)
        self.sums.clear()
        return {
            "loss": sums["loss"] / sums["steps"],
            **{f"{part}_loss": mean for part, mean in loss_means(sums).items()},
            "tokens_per_second": round(sums["tokens"] / seconds, 1),
            "samples_per_second": round(sums["samples"] / seconds, 3),
            "pack_fill": round(sums["tokens"] / (sums["packs"] * self.args.max_tokens_per_pack), 4),
            "data_wait_seconds": round(sums["data_wait_seconds"] / processes, 3),
            "quarantined_rows": int(sums["quarantined_rows"]),
            **self._more_logs(sums),
            **self.meters.logs(sums, seconds, processes),
        }

    def _more_logs(self, sums: dict[str, float]) -> dict[str, float]:
        """More values to log; trainers of another kind override this."""
        return {}

    # --- checkpoints --------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Trains, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint folder, or `True` for the newest complete one in `output_dir`; if
                there is none, for example after a job that was killed early, training starts from the beginning.
            kwargs: As in `Trainer.train`.

        Raises:
            ValueError: If the checkpoint is incomplete or belongs to another run.
            DataError: If a row cannot be used and `bad_rows` is `"raise"`.
            NotFiniteError: If a loss or gradient is not a number.
        """
        checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        self.args.ignore_data_skip = True  # the loader begins at the current step
        self.first_step, self._average_from = 0, checkpoint
        self.sums.clear()
        if checkpoint is None:
            self.data.begin()
        else:
            self.first_step = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text())["global_step"]
            state = load_state(checkpoint, self.args.process_index)
            self.data.load_state_dict(state["data"], self.first_step)
            if state["data"]["processes"] == self.args.world_size:
                self.sums.load_state_dict(state["sums"])
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self.stop_signal.restore_handlers()

    def _build_accelerator_args(self, **kwargs):
        """Without the compiler: accelerate would compile the whole model, we compile its layers."""
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="NO")}

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        args = self.args
        if args.torch_compile:
            inner_model(self.model).compile_for_training(args.torch_compile_backend, args.torch_compile_mode)
        set_checkpointing(
            self.model, args.activation_checkpointing, args.torch_compile, args.activation_checkpointing_kwargs
        )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap is None:
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sharded_units(inner_model(self.model))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._encoders = frozen_encoders(inner_model(self.model)) if self.is_fsdp_enabled else []
        recompute, text_loss = checkpointing_of(self.args) == "full", self.args.text_loss_weight > 0
        self.meters = Meters(inner_model(self.model), recompute, text_loss, self.args.device)
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.model, self.args.ema_decay)
            self._load_average(self._average_from)
        return prepared


# --- parts of the constructor ---------------------------------------------------------------------------------------


def _load(name: str, args: UniEditConfig, quantization_config) -> PreTrainedModel:
    options = {"dtype": torch.float32} | (args.model_init_kwargs or {})
    if quantization_config is not None:
        options |= {"quantization_config": quantization_config, "device_map": {"": args.device}}
    model = load_model(name, **options)
    if args.device.type == "cuda" and "attn_implementation" not in options:
        model.set_attn_implementation(model.pack_attention)
    return model


def _prepare_model(model, args: UniEditConfig, peft_config: PeftConfig | None, draws: bool):
    """Freezes parameters that are not trained and adds adapters."""
    inner = inner_model(model)
    if "timestep_shift" in inner.training_options:
        inner.config.timestep_shift = args.timestep_shift
    if isinstance(model, PeftModel):
        return model
    if peft_config is None:
        freeze(inner, args, draws)
        return model
    if isinstance(peft_config, LoraConfig) and peft_config.target_modules is None:
        peft_config = copy.copy(peft_config)
        peft_config.target_modules = adapted_layers(inner, args, draws)
    return get_peft_model(model, peft_config)


def _training_processor(processor, args: UniEditConfig):
    """A copy of the processor with the image sizes of training; the original, which is saved, is not changed."""
    return processor if args.vit_longest_edge is None else processor.with_vit_longest_edge(args.vit_longest_edge)
