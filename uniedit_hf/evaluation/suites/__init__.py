"""Suites, one file per benchmark: how its prompts are read, what its judge is asked, and how replies become scores.

Each module has `EDITS` (whether images are edited or drawn), `HEADLINE` (the number shown first), `COMPATS` (the
official scripts it can score as), `SETTINGS` (drawing settings, by preset),
`read(prompts, images)`, `score(item, replies, compat)`, `summary(rows, compat)` and, except for GenEval,
`questions(item, picture, texts, compat)`. The small world makes its items itself and needs no judge: it has
`draw`, `output_path` and `outcomes` of its own, and `groups` of items that are compared apart.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


SUITES = ("geneval", "wise", "imgedit", "gedit", "rise", "kris", "small_world")


def suite(name: str) -> ModuleType:
    """The suite of that name."""
    place = "small_world.suite" if name == "small_world" else f"evaluation.suites.{name}"
    return import_module(f"uniedit_hf.{place}")
