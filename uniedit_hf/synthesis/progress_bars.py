"""Progress of a run: rows with the remaining time, each stage, and each backend with its cost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from uniedit_hf.calls.budget import Budget
from uniedit_hf.calls.caller import Caller
from uniedit_hf.synthesis.records import Draft, Rejection


SECONDS = 0.5
SECONDS_IN_A_LOG = 30.0


@dataclass
class Passed:
    """Number of rows that entered and left a stage.

    Args:
        taken: Drafts and rejections that came in.
        given: Drafts and rejections that went out.
        rejected: Drafts that became rejections here, by reason.
    """

    taken: int = 0
    given: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def note(self, before: Draft | Rejection, after: Draft | Rejection) -> None:
        self.given += 1
        if isinstance(before, Draft) and isinstance(after, Rejection):
            self.rejected[after.reason] = self.rejected.get(after.reason, 0) + 1


class Progress:
    """Bars on a terminal; elsewhere an occasional line. `read` and `made` are the rows and the edits so far.

    Args:
        title: The title of the bar.
        rows: Number of rows of the source, if known.
        edits: Number of edits to make, if that ends the run; the remaining time is then computed from it.
    """

    def __init__(self, title: str, rows: int | None, edits: int | None):
        self.read = self.made = 0
        self.of_edits = edits is not None
        self.live = sys.stderr.isatty()
        every = SECONDS if self.live else SECONDS_IN_A_LOG
        total, unit = (edits, " edits") if self.of_edits else (rows, " rows")
        self.bar = tqdm(total=total, desc=title, unit=unit, mininterval=every, maxinterval=every, leave=True)
        self.lines: dict[str, tqdm] = {}

    async def watch(self, stages: Mapping[str, Passed], callers: Mapping[str, Caller], budget: Budget) -> None:
        """Shows the counts until it is cancelled."""
        while True:
            self.show(stages, callers, budget)
            await asyncio.sleep(SECONDS)

    def show(self, stages: Mapping[str, Passed], callers: Mapping[str, Caller], budget: Budget) -> None:
        self.bar.update((self.made if self.of_edits else self.read) - self.bar.n)
        calls = sum(caller.made for caller in callers.values())
        other = f"{self.read:,} rows" if self.of_edits else f"{self.made:,} edits"
        spent = f"{calls:,} calls, {budget.tokens:,} tokens, {budget.money:.2f} spent"
        self.bar.set_postfix_str(f"{other}, {spent}", refresh=False)
        if not self.live:
            return
        for name, passed in stages.items():
            self._line(name, f"  {name:12} {passed.given:>9,} rows {sum(passed.rejected.values()):>9,} rejected")
        for name, caller in callers.items():
            busy = caller.settings.concurrency - caller.slots._value
            self._line(
                f"backend {name}", f"  {name:12} {caller.made:>9,} calls {caller.cached:>9,} kept {busy:>4} in flight"
            )

    def close(self) -> None:
        for bar in (*self.lines.values(), self.bar):
            bar.close()

    def _line(self, name: str, text: str) -> None:
        if name not in self.lines:
            self.lines[name] = tqdm(bar_format="{desc}", position=len(self.lines) + 1, leave=False)
        self.lines[name].set_description_str(text)
