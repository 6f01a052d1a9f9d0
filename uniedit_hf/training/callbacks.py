"""What happens beside the steps: averaging weights, ending cleanly on SIGTERM, drawing samples."""

from __future__ import annotations

import signal
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback

from uniedit_hf.pipeline import UniEditPipeline

from .ema import WeightAverage


class AverageCallback(TrainerCallback):
    """Updates the moving average after every optimizer step."""

    def __init__(self, average: WeightAverage):
        self.average = average

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.average.update(model)


class StopSignalCallback(TrainerCallback):
    """On SIGTERM (a scheduler's notice) the step is finished, a checkpoint written and training ended."""

    def __init__(self):
        self.asked = False
        self.previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame):
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.asked:
            print(f"SIGTERM: saving step {state.global_step} and ending; resume to go on.", flush=True)
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.previous)


class SampleImagesCallback(TrainerCallback):
    """Edits the first evaluation rows every `sample_steps` steps, always from the same noise, into `samples/`."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % args.sample_steps or not state.is_world_process_zero:
            return
        rows: Dataset = self.trainer.eval_dataset.select(range(min(args.num_samples, len(self.trainer.eval_dataset))))
        was_training = model.training
        pipeline = UniEditPipeline(self.trainer.accelerator.unwrap_model(model), self.trainer.processing_class)
        images = pipeline.edit(
            [row["source_image"] for row in rows],
            [row["instruction"] for row in rows],
            seed=list(range(len(rows))),
            num_timesteps=args.sample_timesteps,
            source_views=tuple(args.source_views),
        )
        model.train(was_training)
        folder = Path(args.output_dir, "samples")
        folder.mkdir(parents=True, exist_ok=True)
        for row, image in zip(rows, images):
            image.save(folder / f"step-{state.global_step}-{row['id']}.png")
