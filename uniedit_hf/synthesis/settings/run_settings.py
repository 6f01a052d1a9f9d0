"""Settings of a run: its sections, budget, engine and output files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, ValidationError, model_validator

from uniedit_hf.calls.call_settings import BudgetSettings
from uniedit_hf.calls.section import Section
from uniedit_hf.small_world.topics import CATEGORIES
from uniedit_hf.synthesis.settings.backends import Backend, Chat, Editor
from uniedit_hf.synthesis.settings.sources import SMALL_WORLD_SOURCES, PlainEdits, PlannedEdits, Rows, Source
from uniedit_hf.synthesis.settings.stages import (
    Balance,
    Classify,
    Decontaminate,
    Edit,
    Instruct,
    Screen,
    Verify,
)


# The name that pydantic gives to one type of a union, such as `literal['148k','40k']`; no setting has such a name.
TYPE = re.compile(r"\w+\[")
# Parts of an error's location that name the kind of a union, which is not in the user's file.
KIND_AT = {"source": 1, "backends": 2}


class Engine(Section):
    """Where shards are made.

    Args:
        kind: `local`, one after another in this process, or `datatrove`, by its executors.
        executor: Executor of datatrove.
        workers: Number of shards made at the same time.
        arguments: Further arguments of the executor, such as Slurm's `partition` and `time`.
    """

    kind: Literal["local", "datatrove"] = "local"
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: PositiveInt = 2
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _slurm_knows_where(self):
        lacking = [name for name in ("partition", "time") if name not in self.arguments]
        if self.kind == "datatrove" and self.executor == "slurm" and lacking:
            raise ValueError(f"slurm needs {' and '.join(lacking)} under arguments")
        return self


class Export(Section):
    """Files that are written in addition to Parquet.

    Args:
        rows_per_file: Rows of a Parquet file.
        official: Whether to also write JSONL and images in the official format.
        examples: Number of records on the report's page.
    """

    rows_per_file: PositiveInt = 512
    official: bool = False
    examples: PositiveInt = 24


class Settings(Section):
    """Settings of a run. See the classes above for its sections.

    Args:
        output_dir: Folder of the run; a run that was stopped there is resumed.
        seed: Seed of every random choice.
        shards: Number of independent shards, each with its own share of `balance.size`.
        window: Maximum number of rows of a shard in progress; bounds memory.
    """

    output_dir: Path
    seed: int = 0
    shards: PositiveInt = 1
    window: PositiveInt = 64
    source: Source
    backends: dict[str, Backend] = {}
    decontaminate: Decontaminate = Decontaminate()
    classify: Classify | None = None
    balance: Balance = Balance()
    instruct: Instruct
    screen: Screen = Screen()
    edit: Edit
    verify: Verify = Verify()
    budget: BudgetSettings = BudgetSettings()
    engine: Engine = Engine()
    export: Export = Export()

    @model_validator(mode="after")
    def _backends_are_there(self):
        roles = {
            "classify": (self.classify and self.classify.backend, Chat, "rules"),
            "instruct": (self.instruct.backend, Chat, "rules"),
            "edit": (self.edit.backend, Editor, "exact"),
            "verify.judge": (self.verify.judge, Chat, "rules"),
            "verify.quality": (self.verify.quality, Chat, None),
        }
        for role, (name, kind, built_in) in roles.items():
            if name is None:
                continue
            if name == built_in:
                if not isinstance(self.source, SMALL_WORLD_SOURCES):
                    raise ValueError(f"{role}: {name!r} only understands images of easy-VQA")
                continue
            if name not in self.backends:
                known = ", ".join(filter(None, (*self.backends, built_in)))
                raise ValueError(f"{role}: there is no backend {name!r}; known are {known or 'none'}")
            if not isinstance(self.backends[name], kind):
                wanted = "a chat model" if kind is Chat else "an image editor"
                raise ValueError(f"{role}: the backend {name!r} is of kind {self.backends[name].kind!r}, not {wanted}")
        if self.classify is None and not self.planned and not isinstance(self.source, Rows):
            raise ValueError("classify: this source has no categories; name a chat model, or 'rules' for easy_vqa")
        if self.instruct.backend == "rules" and not any(w for depth, w in self.instruct.depths.items() if depth):
            raise ValueError("instruct.depths: 'rules' always writes a condition; give a depth above 0 a weight")
        if self.edit.backend == "exact" and self.instruct.backend != "rules":
            raise ValueError("edit: 'exact' draws what the writer 'rules' means; use both or neither")
        if self.verify.judge == "rules" and self.instruct.backend != "rules":
            raise ValueError("verify.judge: 'rules' knows what the writer 'rules' means; use both or neither")
        return self

    @model_validator(mode="after")
    def _plans_can_be_followed(self):
        if not self.planned:
            return self
        kind = self.source.kind
        if self.classify is not None:
            raise ValueError(f"classify: the source {kind} names the categories itself; leave this section out")
        if self.instruct.backend != "rules":
            raise ValueError(f"instruct: the source {kind} plans for the writer 'rules'; name no other")
        if isinstance(self.source, PlainEdits):
            if self.balance != Balance() or self.instruct != Instruct(backend="rules"):
                raise ValueError("the source plain_edits makes one edit of each image: leave out balance and depths")
            return self
        shares, depths = self.balance.shares, self.instruct.depths
        if self.balance.size is None:
            raise ValueError("balance.size: the source planned_edits needs to know how many edits to make")
        if isinstance(shares, str) or not set(shares) <= set(CATEGORIES):
            raise ValueError(f"balance.shares: give weights to some of {', '.join(CATEGORIES)}")
        if depths.get(0):
            raise ValueError("instruct.depths: 'rules' always writes a condition; give depth 0 no weight")
        return self

    @property
    def planned(self) -> bool:
        """Whether the source plans every edit, that is, decides the form of each instruction and uses an image as
        often as needed.
        """
        return isinstance(self.source, (PlannedEdits, PlainEdits))


def settings_from(options: dict[str, Any], where: str) -> Settings:
    """The settings of a mapping.

    Raises:
        ValueError: One sentence with the location and the first error, without the value, which may be a key.
    """
    try:
        return Settings.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        kind_at = KIND_AT.get(str(first["loc"][0])) if first["loc"] else None
        place = ".".join(
            str(part) for index, part in enumerate(first["loc"]) if index != kind_at and not TYPE.match(str(part))
        )
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such setting"
        others = error.error_count() - 1
        more = f" ({others} more {'mistake' if others == 1 else 'mistakes'})" if others else ""
        raise ValueError(f"{where}: {place + ': ' if place else ''}{message}{more}.") from None
