"""`UniEditTrainer`: transformers' `Trainer` for interleaved text and image losses over packs."""

from __future__ import annotations

import copy
import functools
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import rotate_checkpoints

from uniedit_hf import recipes
from uniedit_hf.losses import Losses
from uniedit_hf.models.loading import load_model, load_processor

from .callbacks import AverageCallback, SampleImagesCallback, StopSignalCallback
from .checkpoints import last_whole_checkpoint, mark_complete, what_is_missing
from .config import UniEditConfig
from .data import PackedDataset, PackReader, PackStream, PartLengths, RunPlan, TrainingPart, packs_of_rank, plan_run
from .ema import WeightAverage
from .freezing import freeze


STREAM_STATE = "stream_state_{rank}.json"


class UniEditTrainer(Trainer):
    r"""Trains a unified multimodal model on edits, answers, drawings and interleavings of them.

    Each loss part is normalised by its global number of tokens over accumulation, batch and devices, and every random
    draw is a function of (seed, epoch, sample id); so neither batching nor devices nor resuming change a run.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            A Hub id, a folder in any layout, or a loaded model.
        args ([`UniEditConfig`], *optional*):
            The settings; the paper's by default.
        train_dataset (`Dataset` or `IterableDataset` or `list[TrainingPart]`, *optional*):
            Rows in the schema of `uniedit-148k`, or several data sets with recipes and weights. A stream needs
            `max_steps`.
        eval_dataset (`Dataset`, *optional*):
            Rows for the evaluation losses and the sample images.
        processing_class ([`BagelProcessor`], *optional*):
            Loaded beside the model if not given.
        callbacks (`list[TrainerCallback]`, *optional*):
            Beside our own.
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler to use instead of those of `args`.
        quantization_config (*optional*):
            To load the model with; trains adapters only, so it needs `peft_config`.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Train adapters. Without `target_modules`: the linear layers of both experts.

    Raises:
        ValueError: If the settings, the model and the data do not go together; the message says what to change.

    Example:
        >>> trainer = UniEditTrainer("ByteDance-Seed/BAGEL-7B-MoT", train_dataset=load_dataset("uniedit-148k"))
        >>> trainer.train()
    """

    _name = "Uni-Edit"
    _tag_names = ["uniedit_hf", "uni-edit", "image-editing"]
    loss_is_scaled_for_ga = True  # by us, exactly; left unset, Trainer would multiply the loss by the accumulation

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: UniEditConfig | None = None,
        train_dataset: Dataset | IterableDataset | Sequence[TrainingPart] | None = None,
        eval_dataset: Dataset | None = None,
        processing_class=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config=None,
        peft_config: PeftConfig | None = None,
    ):
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
        args = args or UniEditConfig(output_dir=f"{Path(name).name}-UniEdit")
        _check_device_count(args)
        self.parts = _parts(train_dataset, args)
        _check_data(self.parts, args)
        _check_adapters(model, peft_config, quantization_config)
        set_seed(args.seed)
        if isinstance(model, str):
            options = {"dtype": torch.float32} | (args.model_init_kwargs or {})
            if quantization_config is not None:
                options["quantization_config"] = quantization_config
            model = load_model(model, **options)
        if processing_class is None:
            processing_class = load_processor(name, _inner(model).config)
        _check_model(model, args)
        model = _prepare_model(model, args, peft_config)
        self.reader = PackReader(
            _training_processor(processing_class, args),
            seed=args.seed,
            posterior=args.posterior,
            keep_bad_rows=args.bad_rows == "quarantine",
        )
        self.plan: RunPlan | None = None
        self.average = WeightAverage(model, args.ema_decay) if args.ema_decay else None
        self._sums: dict[str, defaultdict] = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._num_quarantined = 0
        self._step_ids: list[str] = []
        self._streams: dict[str, Any] = {}
        self._resumed_from: str | None = None
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
        _inner(self.model).add_model_tags(self._tag_names)

    def _add_our_callbacks(self) -> None:
        self.add_callback(StopSignalCallback())
        if self.average is not None:
            self.add_callback(AverageCallback(self.average))
        if self.args.sample_steps:
            if self.eval_dataset is None:
                raise ValueError(
                    "sample_steps draws rows of the evaluation data, but there is none: give eval_dataset."
                )
            self.add_callback(SampleImagesCallback(self))

    # --- data ---------------------------------------------------------------------------------------------------

    @property
    def packs_per_step(self) -> int:
        """Packs that make one optimizer step, over batch, accumulation and devices."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    @property
    def is_streamed(self) -> bool:
        """Whether the training data has no length."""
        return isinstance(self.parts[0].dataset, IterableDataset)

    def get_train_dataloader(self) -> DataLoader:
        """The packs of this rank, in the order of the plan or of the stream."""
        if not self.parts:
            raise ValueError("There is nothing to train on: give train_dataset.")
        if self.is_streamed:
            return self._loader(self._pack_stream(), batch_size=self.args.per_device_train_batch_size)
        if self.plan is None:
            self.plan = self._make_plan()
        numbers = packs_of_rank(
            self.plan, self.args.process_index, self.args.world_size, self.args.max_tokens_per_pack
        )
        size = self.args.per_device_train_batch_size
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return self._loader(PackedDataset(self.parts, self.plan, self.reader), batch_sampler=batches)

    def _make_plan(self) -> RunPlan:
        args = self.args
        lengths = [PartLengths(part, self.reader.processor, self.reader.keep_bad_rows) for part in self.parts]
        if args.text_loss_weight and not any(part.has_text_loss for part in lengths):
            raise ValueError(
                f"text_loss_weight is {args.text_loss_weight}, but no text of the training data carries a loss: set "
                "text_loss_weight=0 or add data with a text loss."
            )
        plan = plan_run(
            self.parts,
            lengths,
            seed=args.seed,
            max_tokens=args.max_tokens_per_pack,
            window=args.packing_window,
            packs_per_step=self.packs_per_step,
            num_epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            skip_bad_rows=self.reader.keep_bad_rows,
        )
        if args.process_index == 0:
            self._quarantine(plan.bad_rows)
        return plan

    def _pack_stream(self) -> PackStream:
        (part,) = self.parts
        part = copy.copy(part)
        if self.args.world_size > 1:
            part.dataset = split_dataset_by_node(part.dataset, self.args.process_index, self.args.world_size)
        return PackStream(
            part,
            self.reader,
            max_tokens=self.args.max_tokens_per_pack,
            window=self.args.packing_window,
            states=self._streams.get("states"),
            first_worker=self._streams.get("first_worker", 0),
        )

    def _loader(self, dataset, **options) -> DataLoader:
        args = self.args
        return DataLoader(
            dataset,
            collate_fn=functools.partial(_merge, self.reader.processor),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    def set_initial_training_values(self, args, dataloader):
        """The plan covers the whole run, so its length is the number of steps."""
        if self.plan is not None:
            args = copy.copy(args)
            args.max_steps = len(self.plan.packs) // self.packs_per_step
        return super().set_initial_training_values(args, dataloader)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device) -> tuple[list, dict[str, torch.Tensor]]:
        """The batches of one optimizer step, and how many tokens carry each loss in all of them on all devices."""
        start = time.perf_counter()
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        waited = time.perf_counter() - start
        counts = torch.zeros(2, dtype=torch.long)
        self._step_ids = []
        for batch in batches:
            counts += torch.tensor([batch.pop("num_text_targets"), batch.pop("num_image_targets")])
            self._note_packs(batch.pop("pack"))
        self._sums["train"]["data_wait_seconds"] += waited
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        text, image = counts.to(device).unbind()
        return batches, {"text": text, "image": image}

    def _note_packs(self, packs: list[dict[str, Any]]) -> None:
        sums = self._sums["train"]
        for pack in packs:
            self._step_ids += pack["ids"]
            sums["tokens"] += pack["tokens"]
            sums["samples"] += len(pack["ids"])
            sums["packs"] += 1
            self._quarantine(pack["bad_rows"])
            if "worker" in pack:
                workers = max(1, self.args.dataloader_num_workers)
                self._streams.setdefault("states", {})[str(pack["worker"])] = pack["state"]
                self._streams["first_worker"] = (pack["worker"] + 1) % workers

    def _quarantine(self, rows) -> None:
        if not rows:
            return
        self._num_quarantined += len(rows)
        path = Path(self.args.output_dir, "quarantine.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)

    # --- losses -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the loss parts, each a share of its global mean.

        The factor `world_size` undoes the averaging of gradients over devices. Without counts (evaluation) the means
        are the batch's own.
        """
        losses: Losses = model(**inputs)
        if num_items_in_batch is None:
            counts, devices = {"text": losses.text_count, "image": losses.image_count}, 1
        else:
            counts, devices = num_items_in_batch, self.args.world_size
        text = losses.text_sum / counts["text"].clamp(min=1)
        image = losses.image_sum / counts["image"].clamp(min=1)
        loss = devices * (self.args.text_loss_weight * text + self.args.image_loss_weight * image)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._not_finite(f"the loss is {loss.item()}"))
        sums = self._sums["train" if self.model.training else "eval"]
        for name in ("text_sum", "text_count", "image_sum", "image_count"):
            sums[name] = sums[name] + getattr(losses, name).detach()
        return (loss, losses) if return_outputs else loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise FloatingPointError(self._not_finite(f"the gradient norm is {float(norm)}"))
        return norm

    def _not_finite(self, what: str) -> str:
        step = self.state.global_step + 1
        return (
            f"Training stopped in step {step}: {what}. The packs of the step held the rows {', '.join(self._step_ids)}. "
            "Lower the learning rate, or look at these rows."
        )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of one batch; the parts are summed for the means over all of them."""
        inputs = {k: v for k, v in inputs.items() if k not in ("num_text_targets", "num_image_targets", "pack")}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """The evaluation rows in packs, with the same draws at every evaluation."""
        args = copy.copy(self.args)
        part = TrainingPart(self.eval_dataset if eval_dataset is None else eval_dataset, _recipe(args))
        plan = plan_run(
            [part],
            [PartLengths(part, self.reader.processor, self.reader.keep_bad_rows)],
            seed=args.seed,
            max_tokens=args.max_tokens_per_pack,
            window=args.packing_window,
            packs_per_step=args.world_size,
            num_epochs=1,
            max_steps=-1,
            skip_bad_rows=self.reader.keep_bad_rows,
        )
        numbers = packs_of_rank(plan, args.process_index, args.world_size, args.max_tokens_per_pack)
        return self._loader(PackedDataset([part], plan, self.reader), batch_sampler=[[n] for n in numbers])

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Mean losses per part over the evaluation rows: `eval_loss`, `eval_image_loss`, `eval_text_loss`."""
        self._sums["eval"].clear()
        return super().evaluate(*args, **kwargs)

    # --- logs ---------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss parts, speed and data figures since the last log."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        sums = self._reduced(self._sums[mode])
        prefix = "eval_" if mode == "eval" else ""
        means = {
            part: sums[f"{part}_sum"] / sums[f"{part}_count"]
            for part in ("image", "text")
            if sums.get(f"{part}_count", 0) > 0
        }
        logs |= {f"{prefix}{part}_loss": mean for part, mean in means.items()}
        if mode == "eval" and means:
            weights = {"image": self.args.image_loss_weight, "text": self.args.text_loss_weight}
            logs["eval_loss"] = sum(weights[part] * mean for part, mean in means.items())
        if mode == "train" and sums.get("packs", 0) > 0:
            seconds = time.perf_counter() - self._log_time
            logs |= {
                "tokens_per_second": round(sums["tokens"] / seconds, 1),
                "samples_per_second": round(sums["samples"] / seconds, 3),
                "pack_fill": round(sums["tokens"] / (sums["packs"] * self.args.max_tokens_per_pack), 4),
                "data_wait_seconds": round(sums["data_wait_seconds"] / self.args.world_size, 3),
                "quarantined_rows": int(sums["quarantined"]),
            }
        if self.plan is not None and self.state.global_step and mode == "train":
            done = self.state.global_step * self.packs_per_step
            self.state.epoch = self._epoch_after(done)
        self._sums[mode].clear()
        self._log_time = time.perf_counter()
        super().log(logs, start_time)

    def _epoch_after(self, num_packs: int) -> float:
        """Passes over the data after so many packs of the plan."""
        epochs = self.plan.epochs
        epoch = epochs[min(num_packs, len(epochs)) - 1]
        first = epochs.index(epoch)
        return epoch + (num_packs - first) / max(1, epochs.count(epoch))

    def _reduced(self, sums: dict[str, Any]) -> dict[str, float]:
        values = {name: float(value) for name, value in sums.items()} | {"quarantined": float(self._num_quarantined)}
        names = ("text_sum", "text_count", "image_sum", "image_count", "tokens", "samples", "packs")
        names += ("data_wait_seconds", "quarantined")
        table = torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64)
        if self.args.world_size > 1:
            table = self.accelerator.reduce(table.to(self.args.device), reduction="sum")
        return dict(zip(names, table.tolist()))

    # --- checkpoints --------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Trains, from the start or on from a checkpoint: a folder, or `True` for the newest whole one of the run.

        Raises:
            ValueError: If there is no whole checkpoint to go on from.
        """
        if resume_from_checkpoint is True:
            main = self.args.process_index == 0
            newest, torn = last_whole_checkpoint(self.args.output_dir, remove_torn=main)
            if main:
                for sentence in torn:
                    print(f"{sentence}: going on from an earlier one.")
            if newest is None:
                raise ValueError(f"{self.args.output_dir} holds no whole checkpoint: start without resuming.")
            resume_from_checkpoint = str(newest)
        elif resume_from_checkpoint:
            reason = what_is_missing(resume_from_checkpoint)
            if reason is not None:
                raise ValueError(f"{resume_from_checkpoint} cannot be resumed from: {reason}. Name an earlier one.")
        self._log_time = time.perf_counter()
        self._resume(resume_from_checkpoint or None)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _resume(self, checkpoint: str | None) -> None:
        if self.is_streamed:
            self.args.ignore_data_skip = True  # the stream goes on from its own state
        if checkpoint is None:
            return
        if self.average is not None:
            self.average.load(checkpoint)
        if self.is_streamed:
            path = Path(checkpoint, STREAM_STATE.format(rank=self.args.process_index))
            self._streams = json.loads(path.read_text())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Files carry the official key names, so they are read by `from_pretrained`, which knows them."""
        model = self.model if model is None else model
        if isinstance(model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(stored.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and processor, and the averaged weights under `ema/`."""
        super().save_model(output_dir, _internal_call)
        if self.average is not None and self.args.should_save:
            self.average.save(self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.is_streamed:
            path = Path(output_dir, STREAM_STATE.format(rank=self.args.process_index))
            path.write_text(json.dumps(self._streams))

    def _save_checkpoint(self, model, trial) -> None:
        """Writes a checkpoint, then the list that says it is whole, and only then removes older ones."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        run_dir = self._get_output_dir(trial=trial)
        if self.args.should_save:
            mark_complete(Path(run_dir, f"checkpoint-{self.state.global_step}"))
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


# --- what the constructor checks and makes --------------------------------------------------------------------------


def _inner(model) -> PreTrainedModel:
    """The model inside its adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _recipe(args: UniEditConfig):
    """The recipe that the settings name, with their conditioning."""
    recipe = getattr(recipes, f"{args.recipe}_sample")
    options = {"thinking_loss": args.thinking_loss} if args.recipe == "edit" else {}
    return functools.partial(recipe, conditioning=args.conditioning, **options)


def _parts(train_dataset, args: UniEditConfig) -> list[TrainingPart]:
    if train_dataset is None:
        return []
    if isinstance(train_dataset, (Dataset, IterableDataset)):
        return [TrainingPart(train_dataset, _recipe(args))]
    if isinstance(train_dataset, (list, tuple)) and all(isinstance(part, TrainingPart) for part in train_dataset):
        return list(train_dataset)
    kind = type(train_dataset).__name__
    hint = "; choose a split, as in train_dataset=data['train']" if isinstance(train_dataset, dict) else ""
    raise ValueError(f"train_dataset is a {kind}: give a Dataset, an IterableDataset or a list of TrainingPart{hint}.")


def _check_device_count(args: UniEditConfig) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, which would replicate the model in threads: start with `accelerate "
            "launch`, or show the process one GPU with CUDA_VISIBLE_DEVICES."
        )


def _check_data(parts: list[TrainingPart], args: UniEditConfig) -> None:
    streamed = [isinstance(part.dataset, IterableDataset) for part in parts]
    if any(streamed) and len(parts) > 1:
        raise ValueError(
            "A mix of data sets is planned by their lengths, which streams do not have: load them without "
            "streaming=True, or interleave the streams with datasets.interleave_datasets."
        )
    if any(streamed) and args.max_steps <= 0:
        raise ValueError("A stream has no length, so the run needs an end: set max_steps.")


def _check_adapters(model, peft_config, quantization_config) -> None:
    if quantization_config is not None and not isinstance(model, str):
        raise ValueError("quantization_config loads a model by name, but model is one already: quantise when loading.")
    if quantization_config is not None and peft_config is None:
        raise ValueError("Quantised weights cannot be trained: give peft_config to train adapters on them.")
    if peft_config is not None and isinstance(model, PeftModel):
        raise ValueError("The model carries adapters already: leave out peft_config, or merge them first.")


def _check_model(model, args: UniEditConfig) -> None:
    if args.image_loss_weight and not hasattr(_inner(model), "vae"):
        raise ValueError(
            f"image_loss_weight is {args.image_loss_weight}, but {type(_inner(model)).__name__} has no autoencoder to "
            "make targets with: use the class for conditional generation, or set image_loss_weight=0."
        )


def _prepare_model(model, args: UniEditConfig, peft_config: PeftConfig | None):
    inner = _inner(model)
    inner.config.timestep_shift = args.timestep_shift
    if isinstance(model, PeftModel):
        return model
    freeze(inner, args)
    if peft_config is None:
        return model
    if isinstance(peft_config, LoraConfig) and peft_config.target_modules is None:
        peft_config = copy.copy(peft_config)
        peft_config.target_modules = inner.lora_target_modules
    return get_peft_model(model, peft_config)


def _training_processor(processor, args: UniEditConfig):
    """The processor with the sizes of training, leaving the one that is saved as it is."""
    if args.vit_longest_edge is None:
        return processor
    processor = copy.deepcopy(processor)
    processor.image_processor.vit_size["longest_edge"] = args.vit_longest_edge
    return processor


def _merge(processor, packs: list[dict[str, Any]]) -> dict[str, Any]:
    """Packs of a batch laid end to end; what the trainer wants to know of each stays a list."""
    notes = [pack.pop("pack") for pack in packs]
    return {**processor.merge(packs), "pack": notes}
