"""The prompts, each in a file of `prompts/` with its version in the first line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path


FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt with its version; name and version are stored in the rows made with it."""

    name: str
    version: int
    text: str

    @property
    def label(self) -> str:
        return f"{self.name}.{self.version}"


@cache
def prompt(name: str) -> Prompt:
    """The text of `prompts/NAME.md`."""
    first, _, text = (FOLDER / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    return Prompt(name, int(first.removeprefix("version: ")), text.strip())
