"""easy-VQA's questions as drafts."""

from __future__ import annotations

from uniedit_hf.calls.messages import Picture
from uniedit_hf.schema import stable_id
from uniedit_hf.small_world.easy_vqa import VqaRow
from uniedit_hf.small_world.source_images import source_of_row
from uniedit_hf.synthesis.records import Draft, Rejection


def draft_of_row(row: VqaRow, number: int = 0) -> Draft | Rejection:
    """A question as a draft, with the scene that the reader finds in its picture.

    Raises:
        FileNotFoundError: There is no such picture.
    """
    source = source_of_row(row)
    if isinstance(source, Rejection):
        return Rejection(source.reason, source.id, "source", question=row.question, position=(number, 0))
    return Draft(
        position=(number, 0),
        id=stable_id(source.image, row.question, row.answer),
        image=Picture(source.image),
        question=row.question,
        answer=row.answer,
        source="easy-vqa",
        license=source.license,
        split=source.split,
        row=row,
        scene=source.scene,
    )
