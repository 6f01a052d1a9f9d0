"""WISE: drawings that need knowledge, marked by a judge."""

from __future__ import annotations

from collections.abc import Sequence

from uniedit_hf.evaluation.items import Item, Outcome, read_rows
from uniedit_hf.evaluation.judge import Question
from uniedit_hf.evaluation.judge_prompts import WISE, fill
from uniedit_hf.evaluation.scorers import wise_scores


EDITS = False
HEADLINE = "overall_mean"
COMPATS = ("uniedit",)
# The released models write their reasoning before they draw.
_COMMON = {"guidance_interval": (0.4, 1.0), "num_timesteps": 50, "guidance_renorm": "global", "thinking_budget": 2048}
SETTINGS = {
    "bagel": _COMMON | {"text_guidance_scale": 4.0, "timestep_shift": 3.0},
    "uniedit": _COMMON | {"text_guidance_scale": 8.0, "timestep_shift": 4.0},
}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The rows of a `final_data.json`.

    Raises:
        ValueError: If it is another file.
    """
    rows = read_rows(prompts, ("Prompt", "Explanation", "Subcategory", "prompt_id"), "WISE")
    for row in rows:
        wise_scores.category(row)
    return [Item(f"{int(row['prompt_id']):04d}", row["Prompt"], row) for row in rows]


def check(items: Sequence[Item], compat: str) -> None:
    """Raises: ValueError: If the official script would stop, because it needs all rows of its three files."""
    wise_scores.check_sizes([wise_scores.category(item.row) for item in items])


def questions(item: Item, picture, texts: dict[str, str], compat: str | None = None) -> list[Question]:
    values = {"prompt": item.prompt, "explanation": item.row["Explanation"]}
    return [Question("wise", fill(texts.get("wise", WISE), values), [picture])]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    found = wise_scores.parse(replies["wise"], compat=compat is not None)
    if found.problem:
        return Outcome(found.status, reason=found.problem, question="wise")
    return Outcome("ok", wise_scores.wiscore(found.marks), found.marks)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    marks = [(wise_scores.category(item.row), outcome.parts) for item, outcome in rows if outcome.status == "ok"]
    return wise_scores.summary(marks, compat=compat is not None)
