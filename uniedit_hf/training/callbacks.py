"""Callbacks of the trainer: counting epochs, averaging weights, stopping cleanly on SIGTERM and Ctrl-C, drawing
samples.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from uniedit_hf.files import written_file
from uniedit_hf.pipeline import UniEditPipeline


logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Reports the epoch of a run (the loop of `Trainer` sees one long epoch), and triggers what the strategies ask for
    at the end of each.

    Args:
        epoch_after: Maps a number of steps to passes over the data.
    """

    def __init__(self, epoch_after: Callable[[int], float]):
        self.epoch_after = epoch_after

    def on_step_end(self, args, state, control, **kwargs):
        before, state.epoch = self.epoch_after(state.global_step - 1), self.epoch_after(state.global_step)
        if int(state.epoch) > int(before) and state.global_step < state.max_steps:
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"


class ClockCallback(TrainerCallback):
    """Tells the trainer's clock when the optimizer begins and ends."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.meters.clock.begin("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.meters.clock.begin("other")


class AverageCallback(TrainerCallback):
    """Updates the trainer's moving average after every optimizer step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.trainer.average.update(model)


class StopSignalCallback(TrainerCallback):
    """On SIGTERM (a scheduler's notice) or Ctrl-C the step is finished, a checkpoint written and training ended. A
    second Ctrl-C stops at once, as Python does by default.

    Attributes:
        received: The signal that this process received.
        agreed: Whether any process had received it when the step began; all processes must stop after the same step.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.agreed = False
        self.previous: dict[signal.Signals, Any] = {}

    @property
    def signaled(self) -> bool:
        """Whether this process received a signal."""
        return self.received is not None

    def on_train_begin(self, args, state, control, **kwargs):
        self.received, self.agreed = None, False
        if threading.current_thread() is threading.main_thread():  # Python handles signals only in the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._receive)

    def _receive(self, number, frame):
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed or self.signaled and args.world_size == 1:
            name = "Another process was told to stop" if self.received is None else self.received.name
            logger.warning(f"{name}: saving step {state.global_step} and stopping; resume from it to continue.")
            control.should_save = True
            control.should_training_stop = True

    def restore_handlers(self) -> None:
        """Restores the handlers from before training, however it ended."""
        while self.previous:
            signal.signal(*self.previous.popitem())


class SampleImagesCallback(TrainerCallback):
    """Draws the first evaluation rows every `sample_steps` steps, always from the same noise, into `samples/`.

    Every process draws, since the model may be spread over all of them; the first one saves.

    Args:
        trainer: The trainer whose model and processor draw.
        rows: The rows to draw.
    """

    def __init__(self, trainer, rows: list[dict]):
        self.trainer = trainer
        self.rows = rows

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % args.sample_steps:
            return
        was_training = model.training
        with self.trainer.whole_weights():
            images = self._draw(args, UniEditPipeline(model, self.trainer.processing_class))
        model.train(was_training)
        if state.is_world_process_zero:
            folder = Path(args.output_dir, "samples")
            for number, image in enumerate(images):
                with written_file(folder / f"step-{state.global_step}-row-{number}.png") as part:
                    image.save(part, "PNG")

    @torch.no_grad()
    def _draw(self, args, pipeline: UniEditPipeline) -> list:
        settings = {"seed": list(range(len(self.rows)))}
        if "num_timesteps" in pipeline.known_settings:
            settings["num_timesteps"] = args.sample_timesteps
        if args.recipe == "generate":
            texts = [row["prompt"] if "prompt" in row else row["instruction"] for row in self.rows]
            return pipeline.generate(texts, **settings)
        sources = [row["source_image"] for row in self.rows]
        views = tuple(args.source_views)
        return pipeline.edit(sources, [row["instruction"] for row in self.rows], source_views=views, **settings)
