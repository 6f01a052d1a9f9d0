"""GEdit: edits in eleven groups, marked twice by a judge (VIEScore)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.judge import Question
from uniedit_hf.evaluation.judge_prompts import GEDIT, fill
from uniedit_hf.evaluation.scorers import gedit_scores
from uniedit_hf.images import open_image


EDITS = True
HEADLINE = "overall"
COMPATS = ("uniedit", "lmms-eval")
FAILED = {"lmms-eval": 0.0}
FIELDS = ("key", "task_type", "instruction", "instruction_language", "input_image_raw", "Intersection_exist")
_COMMON = {"guidance_renorm": "text_channel", "timestep_shift": 3.0, "num_timesteps": 50}
SETTINGS = {
    "bagel": _COMMON | {"text_guidance_scale": 4.0, "image_guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)},
    "uniedit": _COMMON | {"text_guidance_scale": 4.5, "image_guidance_scale": 1.2, "guidance_interval": (0.4, 1.0)},
}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The rows of the data set with this Hub id or in this folder; its images are included.

    Raises:
        ValueError: If it is another data set.
    """
    from datasets import Image, load_dataset

    data = load_dataset(prompts, split="train")
    if missing := [name for name in FIELDS if name not in data.column_names]:
        raise ValueError(f"{prompts} does not have the columns {', '.join(missing)}: expected the data set of GEdit.")
    data = data.cast_column("input_image_raw", Image(decode=False)).select_columns(FIELDS)
    rows = data.remove_columns("input_image_raw")
    return [
        Item(str(row["key"]), row["instruction"], row, [partial(_source, data, index)])
        for index, row in enumerate(rows)
    ]


def _source(data, index: int):
    return open_image(data[index]["input_image_raw"], name=f"input_image_raw of row {index}")


def check(items: Sequence[Item], compat: str) -> None:
    """Raises: ValueError: If the official mean would be NaN because a group has no instruction in English."""
    groups = {item.row["task_type"] for item in items if item.row["instruction_language"] == "en"}
    missing = [group for group in gedit_scores.GROUPS if group not in groups]
    if compat == "uniedit" and missing:
        raise ValueError(
            f"The official script averages eleven groups, but no item in English is of {', '.join(missing)}: take all "
            "items, or leave compat out."
        )


def questions(item: Item, picture, texts: dict[str, str], compat: str | None = None) -> list[Question]:
    """As VIEScore does, the edit is scaled to the size of its source."""

    def resized():
        return picture().resize(item.sources[0]().size)

    sc = fill(texts.get("sc", GEDIT["sc"]), {"instruction": item.prompt})
    return [Question("sc", sc, [*item.sources, resized]), Question("pq", texts.get("pq", GEDIT["pq"]), [resized])]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    marks = {name: gedit_scores.parse(replies[name], compat) for name in ("sc", "pq")}
    for name, found in marks.items():
        if found.problem:
            return Outcome(found.status, reason=f"{name}: {found.problem}", question=name)
    parts = {name: found.marks["score"] for name, found in marks.items()}
    if parts["sc"] * parts["pq"] < 0:  # as VIEScore reads them, without checking the scale
        return Outcome("parse_error", reason=f"marks {parts}, which have no geometric mean")
    return Outcome("ok", gedit_scores.overall(**parts), parts)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    """Summary over the instructions in English."""
    table = [
        {
            "group": item.row["task_type"],
            "language": item.row["instruction_language"],
            "intersection": item.row["Intersection_exist"],
            "sc": outcome.parts.get("sc"),
            "pq": outcome.parts.get("pq"),
        }
        for item, outcome in rows
    ]
    return gedit_scores.summary(table, compat=compat)
