"""Makes the results that the page opens with: python -m uniedit_hf.demo.stored_example --tuned runs/quickstart/model

The rule: seed 0, the page's own settings, and of the small examples of a tab the first; of edits the first that the
tuned model gets right, as read from its pixels, or the first of all if there is none. `make stored-example` runs the
quickstart first. Run it again when the shipped base changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from uniedit_hf.small_world.reader import read
from uniedit_hf.small_world.scene import SIDE

from .handlers import Handlers
from .limits import Limits
from .models import Pair, load_pair
from .request_examples import FOLDER, LIST, STORED, Example, read_examples


SEED = 0
QUICKSTART = "the model that the quickstart tunes"
MOST_MOVED = 6  # pixels between the centers of a shape before and after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="assets/small_bagel", help="folder of the shipped base")
    parser.add_argument("--tuned", default="runs/quickstart/model", help="folder of the tuned model")
    given = parser.parse_args()
    print(store(load_pair(given.base, given.tuned), Path(given.base).name, QUICKSTART, FOLDER))  # noqa: T201


def store(pair: Pair, base: str, tuned: str, folder: Path) -> str:
    """Draws and asks an example of each tab, and writes images and `stored.json`.

    Args:
        pair: The models.
        base: The text of the page about the base model.
        tuned: The text about the tuned model.
        folder: Where the files go.

    Returns:
        Which edit was taken, in a sentence.
    """
    handlers, stored = Handlers(pair, Limits()), {"base": base, "tuned": tuned, "seed": SEED}
    edit, results, right = _first_right_edit(handlers)
    stored["edit"] = _written("edit", edit, results, folder) | {"right": right}
    question = read_examples(small=True, tab="ask")[0]
    *_, answered = handlers.ask(_opened(handlers, question), question.text)
    stored["ask"] = {"text": question.text, "picture": question.picture.name, "results": list(answered[:2])}
    prompt = read_examples(small=True, tab="generate")[0]
    *_, drawn = handlers.generate(prompt.text, SEED)
    stored["generate"] = _written("generate", prompt, drawn[:2], folder)
    (folder / STORED).write_text(json.dumps(stored, indent=1) + "\n")
    return f"Stored: {edit.text} ({'right' if right else 'no example is right'})"


def is_right(result: Image.Image, source: Image.Image, expected: dict) -> bool:
    """Whether an edit shows what `right` in examples.json says: shape, color, area relative to the source, place."""
    before, after = read(source.resize((SIDE, SIDE))), read(result.resize((SIDE, SIDE)))
    if after is None or (after.shape, after.color) != (expected["shape"], expected["color"]):
        return False
    moved = max(abs(old - new) for old, new in zip(before.center, after.center))
    low, high = expected["area"]
    return moved <= MOST_MOVED and low <= after.width * after.height / (before.width * before.height) <= high


def _first_right_edit(handlers: Handlers) -> tuple[Example, tuple, bool]:
    examples, drawn = read_examples(small=True, tab="edit"), []
    expected = json.loads((FOLDER / LIST).read_text())["right"]
    for example in examples:
        source = _opened(handlers, example)
        *_, last = handlers.edit(source, example.text, SEED)
        drawn.append(last[:2])
        if is_right(last[1], source, expected[example.text]):
            return example, last[:2], True
    return examples[0], drawn[0], False


def _opened(handlers: Handlers, example: Example) -> Image.Image:
    return handlers.limits.open_picture(str(example.picture))


def _written(tab: str, example: Example, images: tuple, folder: Path) -> dict:
    names = [f"stored_{tab}_{side}.png" for side in ("base", "tuned")]
    for name, image in zip(names, images):
        image.save(folder / name)
    return {"text": example.text, "picture": example.picture.name if example.picture else None, "results": names}


if __name__ == "__main__":
    main()
