"""KRIS-Bench: edits that need knowledge. Items with several sources are left out: the pipeline edits one image."""

from __future__ import annotations

from uniedit_hf.evaluation.items import Item, Outcome, picture as later, read_rows
from uniedit_hf.evaluation.judge import Question
from uniedit_hf.evaluation.judge_prompts import KRIS, fill
from uniedit_hf.evaluation.scorers import kris_scores
from uniedit_hf.evaluation.scorers.marks import mean


EDITS = True
HEADLINE = "overall"
COMPATS = ("uniedit",)
_COMMON = {"guidance_interval": (0.0, 1.0), "guidance_renorm": "text_channel", "timestep_shift": 3.0}
_COMMON |= {"text_guidance_scale": 4.0, "image_guidance_scale": 1.5, "num_timesteps": 50}
SETTINGS = {"bagel": _COMMON, "uniedit": _COMMON}


def read(prompts: str, images: str | None = None) -> list[Item]:
    """The rows of a `final_data.json` with one source, which is in `images` as `TYPE/FILE`.

    Raises:
        ValueError: If it is another file, or an image is missing.
    """
    items = []
    for row in read_rows(prompts, ("id", "type", "ori_img", "ins_en"), "KRIS-Bench"):
        kris_scores.meta(row["type"])
        if not isinstance(row["ori_img"], str):
            continue
        truth = row.get("gt_img") if row["type"] == "viewpoint_change" else None
        extras = {"truth": later(images, f"{row['type']}/{truth}")} if truth else {}
        source = later(images, f"{row['type']}/{row['ori_img']}")
        items.append(Item(f"{row['type']}-{row['id']}", row["ins_en"], row, [source], extras))
    if not items:
        raise ValueError(f"{prompts} has no row with one source: this suite edits one image per item.")
    return items


def questions(item: Item, picture, texts: dict[str, str], compat: str | None = None) -> list[Question]:
    kind = item.row["type"]
    explained = kris_scores.explained(kind, compat is not None)
    values = {"instruction": item.prompt, "explanation": item.row.get("explain_en", "") if explained else ""}
    before = [*item.sources, *item.extras.values()]
    name = "knowledge" if kind in kris_scores.KNOWLEDGE else "instruction"
    shown = {"consistency": [*item.sources, picture], name: [*before, picture], "quality": [picture]}
    return [Question(each, fill(texts.get(each, KRIS[each]), values), pictures) for each, pictures in shown.items()]


def score(item: Item, replies: dict[str, str], compat: str | None = None) -> Outcome:
    marks: dict[str, float] = {}
    for name, reply in replies.items():
        names = ("instruction", "knowledge") if name == "knowledge" else (name,)
        found = kris_scores.parse(reply, names, compat is not None, item.row["type"])
        if found.problem:
            return Outcome(found.status, reason=f"{name}: {found.problem}", question=name)
        marks |= found.marks
    return Outcome("ok", mean(25 * (mark - 1) for mark in marks.values()), marks)


def summary(rows: list[tuple[Item, Outcome]], compat: str | None = None) -> dict[str, float | None]:
    return kris_scores.summary((item.row["type"], outcome.parts) for item, outcome in rows if outcome.status == "ok")
