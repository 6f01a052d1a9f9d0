"""Checks a target: unchanged pixels, rendered text, a judge and a quality grade."""

from __future__ import annotations

import json
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from uniedit_hf.calls.caller import Caller, NoAnswer
from uniedit_hf.calls.messages import Answer, ChatRequest, EncodedImage, off_loop
from uniedit_hf.reading_text import text_match
from uniedit_hf.synthesis.ocr import TextReader
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Verify
from uniedit_hf.synthesis.stages.draw import COPY


STAGE = "verify"
CELLS = 32  # cells per side of the grid in which images are compared
SAME = 12.0  # gray levels, averaged over a cell and three channels
CHANGED_AT_ALL = 0.998  # share of equal cells from which an edit counts as no change


class Judgement(Answer):
    reason: str
    premise: bool
    change: bool
    rest: bool


class Grade(Answer):
    reason: str
    quality: Literal[1, 2, 3, 4, 5]


async def verify(
    draft: Draft, judge: Caller | None, quality: Caller | None, reader: TextReader | None, settings: Verify
) -> Draft | Rejection:
    """The draft with its scores: cheap checks first, then the judges, so that little is paid for wrong results."""
    if draft.editor == COPY:  # the source was copied, so the only possible error is that the image should have changed
        checks = [partial(_judged, judge)]
        draft = draft.with_(scores={"preservation": 1.0})
    else:
        checks = [partial(_compared, settings), partial(_read, reader, settings)]
        checks += [partial(_judged, judge), partial(_graded, quality, settings)]
    for check in checks:
        draft = await check(draft)
        if isinstance(draft, Rejection):
            return draft
    return draft


async def _compared(settings: Verify, draft: Draft) -> Draft | Rejection:
    """Checks that pixels have changed, but not too many."""
    if draft.canvas == "new":
        return draft
    same = await off_loop(unchanged_share, draft.image, draft.target)
    if same >= CHANGED_AT_ALL:
        return draft.rejected(STAGE, "nothing was changed", f"{same:.1%} of the image is unchanged.")
    if same < settings.min_unchanged:
        return draft.rejected(STAGE, "too much was changed", f"only {same:.1%} of the image is unchanged.")
    return _scored(draft, "preservation", round(same, 4))


async def _read(reader: TextReader | None, settings: Verify, draft: Draft) -> Draft | Rejection:
    """Checks rendered text."""
    if reader is None or draft.text is None:
        return draft
    found = await reader.read(draft.target)
    match = text_match(draft.text, found)
    if match < settings.min_text_match:
        return draft.rejected(
            STAGE, "the text is not as asked", f"{match:.0%} of {draft.text[:80]!r} was found.", found
        )
    return _scored(draft, "instruction", round(match, 4))


async def _judged(judge: Caller | None, draft: Draft) -> Draft | Rejection:
    """Lets the judge compare source and result."""
    if judge is None:
        return draft
    verdict = await judge.answer(_judge_request(draft))
    if isinstance(verdict, NoAnswer):
        return draft.rejected(STAGE, verdict.reason, verdict.detail, verdict.reply)
    wrong = [name for name in ("premise", "change", "rest") if not getattr(verdict, name)]
    if wrong:
        reason = f"the judge found the {wrong[0]} wrong"
        return draft.rejected(STAGE, reason, verdict.reason, verdict.model_dump_json())
    return _scored(draft, "instruction", draft.scores.get("instruction", 1.0), judge)


async def _graded(quality: Caller | None, settings: Verify, draft: Draft) -> Draft | Rejection:
    """Lets the judge grade the quality of the result."""
    if quality is None:
        return draft
    grade = await quality.answer(ChatRequest(prompt("quality").text, "Grade this picture.", Grade, (draft.target,)))
    if isinstance(grade, NoAnswer):
        return draft.rejected(STAGE, grade.reason, grade.detail, grade.reply)
    if grade.quality < settings.min_quality:
        found = f"grade {grade.quality}: {grade.reason}"
        return draft.rejected(STAGE, "low quality", found, grade.model_dump_json())
    return _scored(draft, "quality", float(grade.quality), quality)


def _scored(draft: Draft, name: str, score: float, by: Caller | None = None) -> Draft:
    """The draft with one more score, and the model that gave it."""
    judges = (draft.judge or "").split()
    if by is not None and by.settings.model not in judges:
        judges.append(by.settings.model)
    return draft.with_(scores={**draft.scores, name: score}, judge=" ".join(judges) or None)


def unchanged_share(source: EncodedImage, target: EncodedImage) -> float:
    """The share of the image, in cells of a grid, that is the same in both, whatever their sizes."""
    first, second = (np.asarray(_small(image), np.float32) for image in (source, target))
    apart = np.abs(first - second).reshape(CELLS, 4, CELLS, 4, 3).mean(axis=(1, 3, 4))
    return float((apart <= SAME).mean())


def _small(image: EncodedImage) -> Image.Image:
    return image.pixels().resize((CELLS * 4, CELLS * 4), Image.Resampling.BOX)


def _judge_request(draft: Draft) -> ChatRequest:
    message = {
        "instruction": draft.instruction,
        "question": draft.question,
        "answer": draft.short_answer,
        "expected": draft.expected,
    }
    text = json.dumps(message, ensure_ascii=False)
    return ChatRequest(prompt("judge").text, text, Judgement, (draft.image, draft.target))
