"""The closed vocabulary of the small world: a word tokenizer is built from it."""

from __future__ import annotations

from uniedit_hf.small_world.questions import question_texts
from uniedit_hf.small_world.wording import instruction_texts, split_words


def vocabulary() -> list[str]:
    """Every word and punctuation mark, sorted, that an instruction, a question or answer (easy-VQA's or composed), or
    a drawing prompt can contain."""
    return sorted({word for text in (*instruction_texts(), *question_texts()) for word in split_words(text)})
