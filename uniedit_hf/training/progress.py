"""The position of a run in its data on one process, stored in checkpoints so that resuming is exact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uniedit_hf.row_error import RowError

from .config import UniEditConfig
from .data import PackNotes
from .planning import RunPlan


STATE_FILE = "data_state_{rank}.json"
QUARANTINE_FILE = "quarantine_{rank}.jsonl"
EVALUATION_FILE = "quarantine_eval_{rank}.jsonl"


class DataProgress:
    """Records which packs were trained on, the places of a stream's workers, and which rows were set aside.

    Args:
        args: Settings of the run.
        plan: Plan of the run, `None` for a stream.
    """

    def __init__(self, args: UniEditConfig, plan: RunPlan | None):
        self.args = args
        self.plan = plan
        self.bad_rows: dict[str, str] = {}
        self.stream_states: dict[str, dict] = {}
        self.first_worker = 0
        self.stream_epoch = 0

    @property
    def num_workers(self) -> int:
        """Number of reading workers of a stream in this process."""
        return max(1, self.args.dataloader_num_workers)

    def epoch_after(self, step: int) -> float:
        """Passes over the data after a step; for a stream, whose length is unknown, the passes begun."""
        return self.stream_epoch if self.plan is None else self.plan.epoch_after(step * self.args.packs_per_step)

    def begin(self) -> None:
        """Starts a run from its beginning."""
        self.bad_rows = {}
        self.stream_states, self.first_worker, self.stream_epoch = {}, 0, 0
        self._quarantine_file.unlink(missing_ok=True)
        self.evaluation_file.unlink(missing_ok=True)
        if self.plan is not None and self.args.process_index == 0:
            self.set_aside(self.plan.bad_rows)

    def note(self, pack: PackNotes) -> None:
        """Records the pack that is trained on next."""
        self.set_aside(pack.bad_rows)
        if pack.state is not None:
            self.stream_states[str(pack.worker)] = pack.state
            self.first_worker = (pack.worker + 1) % self.num_workers
            self.stream_epoch = max(self.stream_epoch, pack.epoch)

    def set_aside(self, rows: Iterable[RowError]) -> None:
        """Counts bad rows and lists them in the quarantine file, each once."""
        new = [row for row in rows if row.row_id not in self.bad_rows]
        self.bad_rows |= {row.row_id: row.reason for row in new}
        _list(self._quarantine_file, new)

    def set_aside_in_evaluation(self, rows: Iterable[RowError]) -> None:
        """Lists bad rows of the evaluation data in a file of their own, each once."""
        file = self.evaluation_file
        known = {json.loads(line)["id"] for line in file.read_text().splitlines()} if file.is_file() else set()
        _list(file, [row for row in rows if row.row_id not in known])

    @property
    def evaluation_file(self) -> Path:
        """The file that lists bad rows of the evaluation data."""
        return Path(self.args.output_dir, EVALUATION_FILE.format(rank=self.args.process_index))

    @property
    def _quarantine_file(self) -> Path:
        return Path(self.args.output_dir, QUARANTINE_FILE.format(rank=self.args.process_index))

    def state_dict(self, step: int) -> dict[str, Any]:
        """Everything that decides the packs to come."""
        done = {"packs": step * self.args.packs_per_step, "processes": self.args.world_size, "bad_rows": self.bad_rows}
        if self.plan is not None:
            return done | {"digest": self.plan.digest(step * self.args.packs_per_step)}
        stream = {"workers": self.num_workers, "states": self.stream_states}
        return done | stream | {"first_worker": self.first_worker, "epoch": self.stream_epoch}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Resumes after a step.

        Raises:
            ValueError: If this run would have trained on other packs up to that step.
        """
        if self.plan is not None:
            self._check_plan(state, step)
        else:
            self._check_stream(state)
            self.stream_states, self.first_worker = state["states"], state["first_worker"]
            self.stream_epoch = state["epoch"]
        self.bad_rows = {}
        self._quarantine_file.unlink(missing_ok=True)
        self.set_aside(RowError(reason, row_id=name) for name, reason in state["bad_rows"].items())

    def _check_plan(self, state: dict[str, Any], step: int) -> None:
        packs = step * self.args.packs_per_step
        if "digest" not in state or state["packs"] != packs or state["digest"] != self.plan.digest(packs):
            raise ValueError(
                f"Cannot resume exactly: the checkpoint was trained on {state['packs']:,} packs, but this run plans "
                f"others for its first {step:,} steps ({packs:,} packs). Keep data, recipes and weights, seed, "
                "max_tokens_per_pack, packing_window, dropouts and the packs of a step (batch x accumulation x "
                "processes) as they were."
            )

    def _check_stream(self, state: dict[str, Any]) -> None:
        stored = (state["processes"], state.get("workers"))
        here = (self.args.world_size, self.num_workers)
        if stored != here:
            raise ValueError(
                f"Cannot resume exactly: the checkpoint read its stream with (processes, workers)={stored}, but this "
                f"run has {here}. Set the number of processes and dataloader_num_workers as they were."
            )


def _list(file: Path, rows: Iterable[RowError]) -> None:
    lines = [json.dumps({"id": row.row_id, "reason": row.reason}) + "\n" for row in rows]
    if lines:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as listed:
            listed.writelines(lines)


def save_state(folder: str | os.PathLike, rank: int, state: dict[str, Any]) -> None:
    """Writes the state of one process into a checkpoint."""
    Path(folder, STATE_FILE.format(rank=rank)).write_text(json.dumps(state))


def load_state(folder: str | os.PathLike, rank: int) -> dict[str, Any]:
    """Reads the state of one process from a checkpoint. If the run resumes with more processes than before, an
    additional process reads the state of the first one, which contains all that a plan needs.

    Raises:
        ValueError: If the checkpoint was made by another trainer.
    """
    paths = [Path(folder, STATE_FILE.format(rank=each)) for each in (rank, 0)]
    if not paths[1].is_file():
        raise ValueError(f"{paths[1]} is missing: the checkpoint was made by another trainer; start without it.")
    if paths[0].is_file():
        return json.loads(paths[0].read_text())
    return json.loads(paths[1].read_text()) | {"bad_rows": {}}
