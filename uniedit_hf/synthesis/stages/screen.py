"""Checks an instruction: its length, whether it is finished, and that it does not contain the answer."""

from __future__ import annotations

import re

from uniedit_hf.reading_text import words_of
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Screen


STAGE = "screen"
# Patterns of texts that are unfinished, or that talk about the task instead of the image.
UNFINISHED = re.compile(r"```|<answer>|\[answer\]|\{\w+\}|process_answer|reference answer|no_instr", re.IGNORECASE)
# An answer of more words than this is copied if this share of its runs of four words is found.
LONG_ANSWER, COPIED, RUN = 6, 0.3, 4


def screen(draft: Draft, settings: Screen) -> Draft | Rejection:
    """The draft if its instruction can be used, otherwise a rejection."""
    number = len(words_of(draft.instruction))
    if not settings.min_words <= number <= settings.max_words:
        detail = f"{number} words where {settings.min_words} to {settings.max_words} are allowed."
        return draft.rejected(STAGE, "length of the instruction", detail, draft.instruction)
    unfinished = UNFINISHED.search(draft.instruction)
    if unfinished:
        return draft.rejected(STAGE, "unfinished instruction", f"holds {unfinished[0]!r}.", draft.instruction)
    if leaks(draft.instruction, draft.question, draft.short_answer):
        return draft.rejected(STAGE, "answer in the instruction", f"{draft.short_answer[:80]!r}.", draft.instruction)
    return draft


def leaks(instruction: str, question: str, answer: str) -> bool:
    """Whether the instruction contains the answer more often than the question itself does ("left or right?")."""
    instruction_words, question_words, answer_words = words_of(instruction), words_of(question), words_of(answer)
    if not answer_words:
        return answer.strip() != "" and instruction.count(answer) > question.count(answer)
    if len(answer_words) <= LONG_ANSWER:
        return _occurrences(answer_words, instruction_words) > _occurrences(answer_words, question_words)
    runs = {tuple(answer_words[i : i + RUN]) for i in range(len(answer_words) - RUN + 1)}
    runs -= {tuple(question_words[i : i + RUN]) for i in range(len(question_words) - RUN + 1)}
    copied = runs & {tuple(instruction_words[i : i + RUN]) for i in range(len(instruction_words) - RUN + 1)}
    return len(copied) > COPIED * len(runs) if runs else False


def _occurrences(part: list[str], whole: list[str]) -> int:
    return sum(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))
