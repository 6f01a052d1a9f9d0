"""Writes and reads checkpoints, replacing methods of `Trainer`: files with the official key names, the average, and
under FSDP sharded checkpoints that any number of devices can read.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from uniedit_hf.files import disk_errors_name

from .checkpoints import last_whole_checkpoint, what_is_missing
from .ema import FOLDER as AVERAGE_FOLDER
from .fsdp import gathered_state
from .progress import save_state
from .sharded_state import is_sharded_checkpoint, load_average, load_model, load_optimizer, save_sharded


logger = logging.get_logger(__name__)


class CheckpointMixin:
    """Checkpoint methods; must come before `Trainer` among the bases."""

    _in_checkpoint = False

    def _choose_checkpoint(self, wanted: str | bool | None) -> str | None:
        """The folder to resume from, or `None` to start."""
        if not wanted:
            return None
        if wanted is True:
            newest, torn = last_whole_checkpoint(self.args.output_dir)
            for sentence in torn:
                logger.warning(f"{sentence} Resuming from an earlier one.")
            if newest is None:
                logger.warning(f"{self.args.output_dir} contains no complete checkpoint: starting from the beginning.")
            wanted = None if newest is None else str(newest)
        elif (reason := what_is_missing(wanted)) is not None:
            raise ValueError(f"Cannot resume from {wanted}: {reason}. Pass another checkpoint.")
        if wanted is not None and self.is_fsdp_enabled and not is_sharded_checkpoint(wanted):
            raise ValueError(
                f"Cannot resume from {wanted} under FSDP: its weights and optimizer states are not sharded. Resume "
                "without FSDP, or start a new run from its model with model_name_or_path."
            )
        return wanted

    # --- reading ------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Files have the official key names, so they are read by `from_pretrained`. `Trainer` would mistake the
        average in `ema/` for another adapter.
        """
        model = self.model if model is None else model
        if is_sharded_checkpoint(resume_from_checkpoint):
            load_model(resume_from_checkpoint, model)
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif isinstance(model, PeftModel):
            for name in model.peft_config:
                folder = Path(resume_from_checkpoint, "" if name == "default" else name)
                set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=name)
        else:
            stored = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
            model.load_state_dict(stored.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_sharded_checkpoint(checkpoint):
            load_optimizer(checkpoint, self.model, self._plain_optimizer)
            schedule = torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._tell_what_continues(checkpoint)

    def _tell_what_continues(self, checkpoint: str) -> None:
        """Logs settings that the optimizer of the checkpoint overrides, and stores the values that are used in the
        arguments.
        """
        stored = (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN)
        if not is_sharded_checkpoint(checkpoint) and not any(Path(checkpoint, name).is_file() for name in stored):
            logger.warning(
                f"{checkpoint} contains no optimizer states (save_only_model): the optimizer and its warm-up start "
                "over."
            )
            return
        group = max(self._plain_optimizer.param_groups, key=lambda each: each.get("weight_decay", 0))
        for name, key in (("learning_rate", "initial_lr"), ("weight_decay", "weight_decay")):
            wanted, stored = getattr(self.args, name), group.get(key)
            if stored is None or abs(stored - wanted) <= 1e-9 * max(abs(wanted), abs(stored)):
                continue
            logger.warning(
                f"{name} is {wanted}, but {checkpoint} continues with the {stored} of its optimizer: to train with "
                "another one, start a new run from its weights with model_name_or_path."
            )
            setattr(self.args, name, float(stored))

    def _load_average(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if is_sharded_checkpoint(checkpoint):
            load_average(checkpoint, self.average.shadow)
        else:
            self.average.load_state(checkpoint)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _finalize_training(self, *args, **kwargs):
        """As in `Trainer`, but keeps the checkpoint of a stopped run, from which it resumes, even if another one is
        better.
        """
        limit = self.args.save_total_limit
        if self.state.global_step < self.state.max_steps:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # --- writing ------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and processor, and the averaged weights under `ema/`. Under FSDP the weights are gathered first,
        unless the checkpoint is sharded.
        """
        folder = output_dir or self.args.output_dir
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            if self.average is not None and self.args.should_save:
                self.average.save_model(self.accelerator.unwrap_model(self.model), folder)
                self.processing_class.save_pretrained(Path(folder, AVERAGE_FOLDER))
            return
        if self._in_checkpoint and self._saves_shares:
            if self.args.should_save:
                self._save_settings(folder)
            return
        state = gathered_state(self.model)
        if self.args.should_save:
            self._save(folder, state_dict=state)
        if self.average is not None:
            state = self.average.gathered(self.model, state)
            if self.args.should_save:
                self.average.save_state_dict(self.model, folder, state)
                self.processing_class.save_pretrained(Path(folder, AVERAGE_FOLDER))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @property
    def _saves_shares(self) -> bool:
        """Whether checkpoints are sharded: under FSDP with SHARDED_STATE_DICT. Adapters are small enough to gather."""
        kind = str(self.accelerator.state.fsdp_plugin.state_dict_type) if self.is_fsdp_enabled else ""
        return "SHARDED" in kind and not isinstance(self.model, PeftModel)

    def _save_settings(self, folder: str) -> None:
        """Saves what a model folder needs besides the weights."""
        model = self.accelerator.unwrap_model(self.model)
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        shadow = None if self.average is None else self.average.shadow
        save_sharded(output_dir, self.model, self._plain_optimizer, shadow)
        if self.args.should_save:
            with warnings.catch_warnings():  # torch warns about schedules that are saved before a step
                warnings.simplefilter("ignore")
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _save_checkpoint(self, model, trial) -> None:
        """Writes a checkpoint, then the list that marks it as complete, and only then removes older ones."""
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir, f"checkpoint-{self.state.global_step}")
        if self.args.should_save and folder.exists():
            shutil.rmtree(
                folder
            )  # left by a killed run; its list of files would mark our half-written one as complete
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._in_checkpoint = True
        try:
            with disk_errors_name(folder):
                super()._save_checkpoint(model, trial)
                self._save_progress(folder)
        finally:
            self.args.save_total_limit, self._in_checkpoint = limit, False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._push_checkpoint(folder)
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _save_progress(self, folder: Path) -> None:
        """The state with which a run continues exactly: the place in the data, the sums since the last log, the
        average.
        """
        state = {"data": self.data.state_dict(self.state.global_step), "sums": self.sums.state_dict()}
        save_state(folder, self.args.process_index, state)
        if self.args.should_save and self.average is not None and not self.is_fsdp_enabled:
            self.average.save_state(folder)
