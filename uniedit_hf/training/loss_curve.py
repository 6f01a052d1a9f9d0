"""The losses of a run as an image for its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)
NAME = "loss.png"
SHOWN = {"image_loss": "image loss", "text_loss": "text loss", "eval_loss": "evaluation loss"}


def draw_loss_curve(log_history: Sequence[Mapping[str, Any]], folder: Path) -> str | None:
    """Draws the logged losses over the steps into `folder` and returns the name of the file; draws nothing if the run
    has no logs or matplotlib is missing (which is logged).
    """
    curves = {label: [(log["step"], log[name]) for log in log_history if name in log] for name, label in SHOWN.items()}
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        return None
    if find_spec("matplotlib") is None:
        logger.warning("The card gets no loss curve, since matplotlib is not installed: pip install matplotlib.")
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        marker = "o" if len(points) < 3 else None
        axes.plot(*zip(*points), label=label, linewidth=1.6, marker=marker)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(folder / NAME, metadata={"Software": None})
    return NAME
