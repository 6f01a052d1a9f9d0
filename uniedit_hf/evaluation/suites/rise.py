"""RISE: edits that need reasoning, marked by up to three calls."""

from __future__ import annotations

from uniedit_hf.evaluation.items import Item, Outcome, picture as later, read_rows
from uniedit_hf.evaluation.judge import Question
from uniedit_hf.evaluation.judge_prompts import RISE, fill
from uniedit_hf.evaluation.scorers import rise_scores


EDITS = True
HEADLINE = "overall accuracy"
COMPATS = ("uniedit", "upstream")
FAILED = {"uniedit": 0.0, "upstream": 0.0}
# The released models write their reasoning before they edit.
_COMMON = {"text_guidance_scale": 4.0, "image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)}
_COMMON |= {"guidance_renorm": "text_channel", "timestep_shift": 3.0, "num_timesteps": 50, "thinking_budget": 2048}
SETTINGS = {"bagel": _COMMON, "uniedit": _COMMON}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The rows of a `datav2_total_w_subtask.json`, whose images are below `images`.

    Raises:
        ValueError: If it is another file, or an image is missing.
    """
    items = []
    for number, row in enumerate(read_rows(prompts, ("index", "category", "instruction", "image"), "RISE"), 1):
        if row["category"] not in rise_scores.CATEGORIES:
            raise ValueError(
                f"Row {number} of {prompts} has the category {row['category']!r}, which RISE does not have."
            )
        second = rise_scores.second_picture(row)
        extras = {"second": later(images, second)} if second else {}
        items.append(Item(str(row["index"]), row["instruction"], row, [later(images, row["image"])], extras))
    return items


def questions(item: Item, picture, texts: dict[str, str], compat: str | None = None) -> list[Question]:
    row = item.row
    reference = row.get("reference") or row.get("reference_txt") or "see the reference picture"
    values = {"instruction": item.prompt, "reference": reference}
    extras = list(item.extras.values())
    if row["category"] == "logical_reasoning":
        text = fill(texts.get("logical", RISE["logical"]), values)
        return [Question("logical", text, [*item.sources, *extras, picture])]
    shown = {"consistency": [*item.sources, picture], "reasoning": [*extras, picture], "plausibility": [picture]}
    if not rise_scores.asks_consistency(row, compat):
        del shown["consistency"]
    return [Question(name, fill(texts.get(name, RISE[name]), values), each) for name, each in shown.items()]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    logical = item.row["category"] == "logical_reasoning"
    marks: dict[str, list[float]] = {}
    for name, reply in replies.items():
        found = rise_scores.parse(reply, logical, 2 if logical else 1, compat)
        if found.problem:
            return Outcome(found.status, reason=f"{name}: {found.problem}", question=name)
        marks[name] = list(found.marks.values())
    numbers = [mark for each in marks.values() for mark in each]
    try:
        parts = rise_scores.official_dimensions(item.row, numbers) if compat else rise_scores.dimensions(
            item.row, dict(zip(("consistency", "reasoning") if logical else marks, numbers)))  # fmt: skip
    except ValueError as error:
        return Outcome("parse_error", reason=str(error))
    return Outcome("ok", 100.0 * rise_scores.complete(item.row, parts, compat), parts)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    return rise_scores.summary(((item.row, outcome.parts) for item, outcome in rows), compat)
