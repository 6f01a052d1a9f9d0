"""Examples to press, and the stored one that the page opens with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from PIL import Image


FOLDER = Path(__file__).with_name("examples")
LIST, STORED = "examples.json", "stored.json"


@dataclass(frozen=True)
class Example:
    """A request: a text, and the file of its image where the tab takes one."""

    text: str
    picture: Path | None = None


@dataclass(frozen=True)
class StoredExample:
    """The first example of a tab with what two models made of it, drawn by `stored_example.py`.

    Args:
        example: The request.
        results: Images or answers of base and tuned model.
        seed: Seed of the images.
        status: Which models made it, in a sentence.
    """

    example: Example
    results: tuple[Image.Image | str, Image.Image | str]
    seed: int
    status: str


def read_examples(small: bool, tab: str) -> list[Example]:
    """The examples of a tab for small or large models."""
    rows = json.loads((FOLDER / LIST).read_text())["small" if small else "large"][tab]
    return [Example(text, *(FOLDER / name for name in pictures)) for *pictures, text in rows]


def nearest(text: str, examples: list[Example]) -> int:
    """The number of the example whose words are most like a text; 0 for a text that is empty."""
    alike = [SequenceMatcher(None, text.lower().split(), each.text.lower().split()).ratio() for each in examples]
    return alike.index(max(alike))


def read_stored(tab: str, folder: Path = FOLDER) -> StoredExample:
    """The stored example of a tab."""
    stored = json.loads((folder / STORED).read_text())
    mine = stored[tab]
    results = tuple(_opened(folder / name) if name.endswith(".png") else name for name in mine["results"])
    picture = folder / mine["picture"] if mine["picture"] else None
    seed = f", seed {stored['seed']}" if tab != "ask" else ""
    chosen = ", the first of the list that the tuned model gets right" if mine.get("right") else ""
    status = (
        f"Stored example{chosen}: {stored['base']} and {stored['tuned']}{seed}. Press {tab.capitalize()} to run it "
        "with the models of this page."
    )
    return StoredExample(Example(mine["text"], picture), results, stored["seed"], status)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
