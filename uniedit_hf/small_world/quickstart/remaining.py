"""One line with the progress of a run and the remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from uniedit_hf.small_world.suite_items import SmallWorldItem

from .columns import Column, side_items
from .estimate import Speed, in_words, makespan


UNITS = {"step": "steps", "item": "items"}
FORMAT = "{percentage:3.0f}%|{bar:20}| {desc}"


class RemainingTime:
    """Follows the tasks of a run.

    Args:
        columns: The models, in the order in which they are made.
        items: The test items of each.
        speed: Seconds per unit, as measured before.
        jobs: Number of models made in parallel.
    """

    def __init__(self, columns: Sequence[Column], items: Sequence[SmallWorldItem], speed: Speed, jobs: int):
        self.jobs, self.start = jobs, speed.start
        self.seconds = {"step": speed.step, "item": speed.item}
        self.left = {
            column.label: {
                "step": column.steps - column.steps_done() if column.is_tuned else 0,
                "item": len(items) - column.items_done(items),
            }
            for column in columns
        }
        edits = sum(item.ability == "editing" for item in items)
        self.beside = {column.label: side_items(column, edits) for column in columns}
        self.totals = {column.label: {"step": column.steps, "item": len(items)} for column in columns}
        self.seen: dict[tuple[str, str], tuple[int, float]] = {}
        self.expected = self.seconds_left()
        self.bar: tqdm | None = None
        self.every, self.shown = (0.5 if sys.stderr.isatty() else 20.0), 0.0

    def seconds_left(self) -> float:
        """Seconds until all models are made and measured, at the latest speed."""
        durations = [
            sum(self.seconds[part] * count for part, count in left.items())
            + self.seconds["item"] * self.beside[label] * (left["item"] > 0)
            for label, left in self.left.items()
        ]
        return makespan([each for each in durations if each], self.jobs) + (self.start if any(durations) else 0)

    def __call__(self, label: str, part: str, done: int) -> None:
        """Updates the number of finished units of a part."""
        now = time.perf_counter()
        first, begun = self.seen.setdefault((label, part), (done, now))
        if done - first >= 5:
            self.seconds[part] = (now - begun) / (done - first)
        self.left[label][part] = self.totals[label][part] - done
        self.start = 0.0
        if now - self.shown >= self.every:
            self.shown = now
            self._show(f"{label}: {done} of {self.totals[label][part]} {UNITS[part]}")

    def close(self) -> None:
        """Ends the line."""
        if self.bar is not None:
            self._show("models are made and measured")
            self.bar.close()

    def _show(self, doing: str) -> None:
        if self.bar is None:
            self.bar = tqdm(total=100, bar_format=FORMAT)
        left = self.seconds_left()
        self.bar.n = round(100 * max(0.0, 1 - left / max(self.expected, left, 1e-9)))
        self.bar.set_description_str(f"about {in_words(left)} left ({doing})" if left else doing)
