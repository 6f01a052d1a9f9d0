"""GenEval: drawings, judged by a detector."""

from __future__ import annotations

from uniedit_hf.evaluation.items import Item, Outcome, read_rows
from uniedit_hf.evaluation.scorers import geneval_scores


EDITS = False
HEADLINE = "overall"
COMPATS = ()
IMAGES_PER_PROMPT = 4  # in the official protocol
# Uni-Edit's script raises guidance to 8 over the whole interval; BAGEL's draws with 4.
_COMMON = {"guidance_interval": (0.0, 1.0), "timestep_shift": 3.0, "num_timesteps": 50, "guidance_renorm": "global"}
SETTINGS = {
    "bagel": _COMMON | {"text_guidance_scale": 4.0},
    "uniedit": _COMMON | {"text_guidance_scale": 8.0},
}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The prompts of an `evaluation_metadata.jsonl`.

    Raises:
        ValueError: If it is another file.
    """
    rows = read_rows(prompts, ("tag", "include", "prompt"), "GenEval")
    for number, row in enumerate(rows, 1):
        if row["tag"] not in geneval_scores.TAGS:
            known = ", ".join(geneval_scores.TAGS)
            raise ValueError(f"Row {number} of {prompts} has the tag {row['tag']!r}: expected one of {known}.")
    return [Item(f"{number:05d}", row["prompt"], row) for number, row in enumerate(rows)]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    """The score of the detector's result: "right", or what is wrong."""
    found = replies["detector"]
    return Outcome("ok", float(found == "right"), reason="" if found == "right" else found)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    return geneval_scores.summary((item.row["tag"], item.name, outcome.value == 1) for item, outcome in rows)
