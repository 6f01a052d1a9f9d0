"""Classifies a question and shortens its answer."""

from __future__ import annotations

import json
from typing import Literal

from uniedit_hf.calls.caller import Caller, NoAnswer
from uniedit_hf.calls.messages import Answer, ChatRequest
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft, Rejection


STAGE = "classify"
LEFT_OUT = ("yes_no", "multiple_choice", "other")


class Classification(Answer):
    category: Literal[(*TASK_CATEGORIES, *LEFT_OUT)]
    short_answer: str


async def classify(draft: Draft, caller: Caller | None) -> Draft | Rejection:
    """The draft with category and short answer. If the source gives the category, its answer is the short one."""
    if draft.category is not None:
        return draft.with_(short_answer=draft.answer)
    if caller is None:
        return draft.rejected(STAGE, "no category", "the source gives none and there is no section classify.")
    message = json.dumps({"question": draft.question, "answer": draft.answer}, ensure_ascii=False)
    answer = await caller.answer(ChatRequest(prompt("classify").text, message, Classification))
    if isinstance(answer, NoAnswer):
        return draft.rejected(STAGE, answer.reason, answer.detail, answer.reply)
    if answer.category in LEFT_OUT:
        return draft.rejected(STAGE, f"category {answer.category}", "no edit is made of such questions.")
    if not answer.short_answer.strip():
        return draft.rejected(STAGE, "no short answer", "the model gave none.", answer.model_dump_json())
    return draft.with_(category=answer.category, short_answer=answer.short_answer.strip())
