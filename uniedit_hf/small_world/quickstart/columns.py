"""The models that a page compares. Each is one task: tune it, then test it on all items."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniedit_hf.arithmetic import best_arithmetic, one_thread
from uniedit_hf.files import write_text
from uniedit_hf.pipeline import UniEditPipeline
from uniedit_hf.small_world.replay import with_replay
from uniedit_hf.small_world.scoring import Score
from uniedit_hf.small_world.suite import Output, bounds, draw, output_path, score, stored
from uniedit_hf.small_world.suite_items import SmallWorldItem, planned, test_items
from uniedit_hf.training.checkpoints import checkpoints, last_whole_checkpoint

from .dependence import NUM_ITEMS, dependence
from .edit_data import EDIT_KINDS, load_edits
from .side_by_side import Tell
from .tuning import replay_settings, replay_shares, tune


BATCH = 50
FOLDERS = {"tuned": "model", "paper": "paper"}


@dataclass(frozen=True)
class Column:
    """One model and the paths of its files.

    Args:
        name: `"tuned"` (with plans and replay) or `"paper"` (on intelligent edits alone), which are tuned here;
            `"base"`, or `"long"`, the shipped model that was tuned as `"tuned"` is, but for longer.
        seed: The seed of its tuning; one that is not tuned here has the seed of the run.
        start: Folder of the model that is tuned, or that is measured as it is.
        folder: Folder of the run.
        number: Number of the seed, from 0.
        steps: Steps of its tuning.
        items: Test items of each kind.
    """

    name: str
    seed: int
    start: Path
    folder: Path
    number: int
    steps: int
    items: int

    @property
    def label(self) -> str:
        """Its name on the command line."""
        return f"{self.name}, seed {self.seed}" if self.number else self.name

    @property
    def is_tuned(self) -> bool:
        """Whether it is tuned here."""
        return self.name in FOLDERS

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        if not self.is_tuned:
            return self.start
        return self.folder / (f"{FOLDERS[self.name]}-{self.number}" if self.number else FOLDERS[self.name])

    @property
    def outputs(self) -> Path:
        """The folder of its answers, drawings and edits."""
        return self.folder / "outputs" / (f"{self.name}-{self.number}" if self.number else self.name)

    @property
    def curve_file(self) -> Path:
        """The loss curve, written when the tuning is finished."""
        return self.model / "loss_curve.json"

    @property
    def side_figures_file(self) -> Path:
        """Bounds (base) or dependence (first tuned model), written last."""
        return self.outputs / "side_figures.json"

    @property
    def has_side_figures(self) -> bool:
        return self.number == 0 and self.name in ("base", "tuned")

    def steps_done(self) -> int:
        """Steps done according to the last checkpoint or the finished model."""
        if not self.is_tuned:
            return 0
        if self.curve_file.is_file():
            return self.steps
        newest, _ = last_whole_checkpoint(self.model)
        return int(newest.name.rsplit("-", 1)[1]) if newest else 0

    def items_done(self, items: Sequence[SmallWorldItem]) -> int:
        """Number of items whose output exists."""
        return sum(output_path(self.outputs, item, 0).is_file() for item in items)

    def curve(self) -> list[dict[str, float]]:
        return json.loads(self.curve_file.read_text())

    def read_outputs(self, items: Sequence[SmallWorldItem]) -> list[Output]:
        """The output of the model for every item."""
        return [stored(item, output_path(self.outputs, item, 0)) for item in items]

    def read_side_figures(self) -> dict[str, Any]:
        return json.loads(self.side_figures_file.read_text())


def make_column(column: Column, tell: Tell) -> None:
    """Does the remaining part of tuning and measuring one model.

    Args:
        column: The model.
        tell: Called with the progress: parts `"step"` and `"item"`.
    """
    with one_thread():
        if column.is_tuned and not column.curve_file.is_file():
            _tune(column, tell)
        items = items_of(column.items)
        pipeline = UniEditPipeline.from_pretrained(column.model, batch_size=BATCH).to(best_arithmetic().device)
        done = column.items_done(items)
        draw(pipeline, items, [0], column.outputs, {}, tell=lambda new: tell(column.label, "item", done + new))
        if column.has_side_figures and not column.side_figures_file.is_file():
            _write(column.side_figures_file, _side_figures(column, pipeline, items))


def items_of(num_each: int) -> list[SmallWorldItem]:
    """The suite's items, and its intelligent edits once more, planned."""
    items = test_items(num_each)
    return [*items, *planned(items)]


def _tune(column: Column, tell: Tell) -> None:
    edits = {kind: load_edits(column.folder / "data", kind) for kind in EDIT_KINDS}
    data, settings = edits["intelligent"], {}
    if column.name == "tuned":
        data = with_replay(*edits.values(), shares=replay_shares(column.start))
        settings = replay_settings(column.start)
    curve = tune(
        column.start,
        data,
        column.model,
        **settings,
        steps=column.steps,
        seed=column.seed,
        tell=lambda step: tell(column.label, "step", step),
        resume=True,
    )
    _write(column.curve_file, curve)
    for folder in checkpoints(column.model):
        shutil.rmtree(folder)


def _side_figures(column: Column, pipeline: UniEditPipeline, items: Sequence[SmallWorldItem]) -> dict[str, Any]:
    if column.name == "tuned":
        return dependence(pipeline, items, column.read_outputs(items))
    return {name: [asdict(each) for each in scores] for name, scores in bounds(pipeline, items).items()}


def side_items(column: Column, edits: int) -> int:
    """Number of edits drawn for the side figures, in addition to the items."""
    return 2 * min(NUM_ITEMS, edits) if column.name == "tuned" and column.has_side_figures else 0


def scores_of(column: Column, items: Sequence[SmallWorldItem]) -> list[Score]:
    """The score of every item."""
    return [score(item, output) for item, output in zip(items, column.read_outputs(items))]


def _write(path: Path, facts: Any) -> None:
    write_text(path, json.dumps(facts) + "\n")
