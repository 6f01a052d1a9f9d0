"""ImgEdit, single turn: edits of nine types, marked by a judge."""

from __future__ import annotations

from uniedit_hf.evaluation.items import Item, Outcome, picture as later, read_rows
from uniedit_hf.evaluation.judge import Question
from uniedit_hf.evaluation.judge_prompts import IMGEDIT, fill
from uniedit_hf.evaluation.scorers import imgedit_scores


EDITS = True
HEADLINE = "overall"
COMPATS = ("uniedit", "lmms-eval")
FAILED = {"lmms-eval": 0.0}
_COMMON = {"guidance_interval": (0.0, 1.0), "guidance_renorm": "text_channel", "timestep_shift": 3.0}
_COMMON |= {"text_guidance_scale": 4.0, "num_timesteps": 50}
SETTINGS = {
    "bagel": _COMMON | {"image_guidance_scale": 2.0},
    "uniedit": _COMMON | {"image_guidance_scale": 1.5},
}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The rows of a `singleturn.json`, whose `id` names an image below `images`.

    Raises:
        ValueError: If it is another file, or an image is missing.
    """
    rows = read_rows(prompts, ("key", "id", "prompt", "edit_type"), "ImgEdit")
    return [Item(str(row["key"]), row["prompt"], row, [later(images, row["id"])]) for row in rows]


def questions(item: Item, picture, texts: dict[str, str], compat: str | None = None) -> list[Question]:
    """The text of the item's type in `texts`, as the official `judge_prompt.json` has them, or ours."""
    text = fill(texts.get(item.row["edit_type"], IMGEDIT), {"edit_prompt": item.prompt})
    return [Question("imgedit", text, [*item.sources, picture])]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    found = imgedit_scores.parse(replies["imgedit"], compat)
    if found.problem:
        return Outcome(found.status, reason=found.problem, question="imgedit")
    return Outcome("ok", imgedit_scores.score(found, compat=compat), found.marks)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    return imgedit_scores.summary(((item.row["edit_type"], outcome.value) for item, outcome in rows), compat)
