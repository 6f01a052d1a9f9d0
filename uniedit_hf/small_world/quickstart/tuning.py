"""The small base model and its tuning."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import PrinterCallback, TrainerCallback

from uniedit_hf.arithmetic import best_arithmetic
from uniedit_hf.training import TrainingPart, UniEditConfig, UniEditTrainer
from uniedit_hf.training.checkpoints import last_whole_checkpoint


ASSETS = Path(__file__).resolve().parents[3] / "assets"
BASES = {"bagel": "small_bagel", "janus": "small_janus"}
LONG = {"bagel": "small_bagel_tuned"}
LONG_STEPS, LONG_EDITS = 2400, 20_000  # of its tuning


def base_folder(base: str | None, model: str) -> Path:
    """The folder of the base model.

    Raises:
        OSError: If it does not exist.
    """
    folder = Path(base) if base else ASSETS / BASES[model]
    if not (folder / "config.json").is_file():
        remedy = (
            "name the folder of a checkpoint."
            if base
            else "it comes with a clone of the repository, not with the installed package: run this in a clone, or "
            "pass --base FOLDER with a model of your own."
        )
        raise OSError(f"The small base model is not at {folder}: {remedy}")
    return folder


def long_folder(base: str | None, model: str) -> Path | None:
    """The folder of the shipped model that was tuned for longer; None for another base, or if there is none."""
    folder = ASSETS / LONG[model] if base is None and model in LONG else None
    return folder if folder is not None and folder.is_dir() else None


# Settings that depend on the scale of the model. Chosen on items of training images (docs/evaluation.md) and fixed
# before the first run that was measured on test images.
TUNING_SETTINGS = {"learning_rate": 1e-4, "warmup_steps": 0.05, "ema_decay": 0.99}
# The tuning with replay (`replay.py`), chosen likewise. A BAGEL learns to write what an instruction comes down to; its
# generation expert stays as it is, so that drawings are kept. The base was trained with this shift of the flow time.
# The small Janus has not been taught any plans.
REPLAY_SETTINGS = {"recipe": "interleaved", "text_loss_weight": 1.0, "lr_scheduler_type": "cosine"}
REPLAY_OF_FAMILY = {
    "bagel": {"learning_rate": 8e-4, "freeze_gen": True, "timestep_shift": 3.0, "max_tokens_per_pack": 2048},
}
REPLAY_SHARES = {
    "bagel": {"plans": 12, "planned": 2, "embedded": 1, "drawings": 3, "questions": 1, "composed": 2, "plain": 2},
    "janus": {"edits": 6, "drawings": 3, "questions": 3, "plain": 2},
}
# About 25 edits; an image of the small Janus has four times the tokens in each view, and its source two views.
PACK_TOKENS = {"bagel": 1536, "janus": 5120}
SAVE_STEPS = 100


def small_world(base: Path) -> dict[str, float | int]:
    """The small world's own settings for a model."""
    return TUNING_SETTINGS | {"max_tokens_per_pack": PACK_TOKENS[family_of(base)]}


def replay_settings(base: Path) -> dict[str, Any]:
    """The settings that differ in the tuning with replay."""
    return REPLAY_SETTINGS | REPLAY_OF_FAMILY.get(family_of(base), {})


def replay_shares(base: Path) -> dict[str, float]:
    """The shares of `with_replay` in the tuning with replay."""
    return REPLAY_SHARES[family_of(base)]


def family_of(base: Path) -> str:
    """`"bagel"` or `"janus"`."""
    return json.loads((base / "config.json").read_text())["model_type"]


def _fast() -> dict[str, Any]:
    """Settings for a small model on this machine: its arithmetic, and plain attention, which is the fastest on short
    rows.
    """
    arithmetic = best_arithmetic()
    return {
        "use_cpu": arithmetic.device == "cpu",
        "bf16": arithmetic.dtype == torch.bfloat16,
        "model_init_kwargs": {"attn_implementation": "eager"},
    }


def tune(
    base: Path,
    data: Dataset | list[TrainingPart],
    folder: Path,
    *,
    steps: int,
    seed: int,
    tell: Callable[[int], None] | None = None,
    resume: bool = False,
    peft_config: PeftConfig | None = None,
    **settings,
) -> list[dict[str, float]]:
    """Tunes a model and saves its averaged weights, as in the released BAGEL. A BAGEL is tuned by the paper's recipe
    (image loss only, source by the ViT view, text dropout 0.1, ViT and VAE frozen, both experts trained), a Janus-Pro
    by its own (docs/janus.md). Learning rate, warm-up, pack size and average are those of the small world.

    Args:
        base: Folder of the model.
        data: Edits, or several data sets with recipes.
        folder: Folder for the tuned model.
        steps: Optimizer steps; the weights after the last one are used, without selection.
        seed: Seed of the order and all draws.
        tell: Called with the number of every finished step, instead of a progress bar.
        resume: Save checkpoints along the way, and start from the last one in `folder` if there is one.
        peft_config: Train these adapters, and merge them in the end.
        settings: Options of `UniEditConfig` that differ.

    Returns:
        Per logged step its number and image loss.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the step is finished and a checkpoint is saved.
        SystemExit: Likewise after SIGTERM.
    """
    args = UniEditConfig(
        output_dir=str(folder),
        max_steps=steps,
        seed=seed,
        activation_checkpointing=False,
        logging_steps=max(1, steps // 30),
        save_strategy="steps" if resume else "no",
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=tell is not None,
        **(_fast() | small_world(base) | settings),
    )
    trainer = UniEditTrainer(str(base), args, train_dataset=data, peft_config=peft_config)
    if tell is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Steps(tell))
    trainer.train(resume_from_checkpoint=resume and last_whole_checkpoint(folder)[0] is not None)
    if trainer.stop_signal.signaled:  # the signal ended training, so stop here as well
        raise KeyboardInterrupt if trainer.stop_signal.received == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    trainer.average.copy_to(trainer.model)
    model = trainer.model if peft_config is None else trainer.model.merge_and_unload()
    model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    history = [log for log in trainer.state.log_history if "loss" in log]
    return [{"step": log["step"], "loss": log.get("image_loss", log["loss"])} for log in history]


class _Steps(TrainerCallback):
    """Reports the number of every finished step."""

    def __init__(self, tell: Callable[[int], None]):
        self.tell = tell

    def on_step_end(self, args, state, control, **kwargs):
        self.tell(state.global_step)
