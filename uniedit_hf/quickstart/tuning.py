"""The small base model and its tuning."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from uniedit_hf import UniEditConfig, UniEditTrainer


ASSETS = Path(__file__).resolve().parents[2] / "assets"
BASES = {"bagel": "small_bagel"}


def base_folder(base: str | None, model: str) -> Path:
    """Where the base model lies.

    Raises:
        OSError: If it is not there.
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


def tune(base: Path, dataset: Dataset, folder: Path, *, steps: int, seed: int) -> list[dict[str, float]]:
    """Tunes the base on edits after the paper's recipe (image loss only, source by the ViT view, text dropout 0.1, ViT
    and VAE frozen, both experts trained) and saves it.

    Learning rate, warm-up and pack size are the small world's own.

    Returns:
        Per logged step its number and loss.
    """
    args = UniEditConfig(
        output_dir=str(folder),
        max_steps=steps,
        seed=seed,
        learning_rate=2e-4,
        warmup_steps=0.05,
        max_tokens_per_pack=1536,
        gradient_checkpointing=False,
        logging_steps=max(1, steps // 30),
        save_strategy="no",
        report_to="none",
    )
    trainer = UniEditTrainer(str(base), args, train_dataset=dataset)
    trainer.train()
    trainer.save_model()
    return [{"step": log["step"], "loss": log["loss"]} for log in trainer.state.log_history if "loss" in log]
