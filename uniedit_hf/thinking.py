"""Thinking first: the model writes its reasoning between two tags, then answers or draws, as BAGEL's reference does.

What asks a model to think is its processor's business (`thinking_prompts`).
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


OPEN, CLOSE = "<think>", "</think>"
TAIL = 8  # tokens in which a closing tag is looked for; it takes three of Qwen2's


def split_thoughts(text: str) -> tuple[str, str]:
    """What a model wrote, as its thoughts and the rest, both without tags. Without tags there are no thoughts."""
    before, closed, after = text.partition(CLOSE)
    if not closed and not before.lstrip().startswith(OPEN):
        return "", text.strip()
    return before.strip().removeprefix(OPEN).strip(), after.strip()


class ThinkingBudget(LogitsProcessor):
    """Closes the thoughts of every row that has not done so after `budget` tokens, so that an answer follows.

    Args:
        tokenizer: Writes the closing tag.
        prompt_length: Tokens of the context in `input_ids`.
        budget: Tokens of thoughts, those of the closing tag not counted.
    """

    def __init__(self, tokenizer, prompt_length: int, budget: int):
        self.tokenizer, self.prompt_length, self.budget = tokenizer, prompt_length, budget
        self.close_ids = tokenizer(CLOSE, add_special_tokens=False)["input_ids"]
        self.closed: set[int] = set()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (rows, vocabulary) of the next token behind `input_ids` (rows, length)."""
        written = input_ids[:, self.prompt_length :]
        for row in range(len(written)):
            if row not in self.closed and CLOSE in self.tokenizer.decode(written[row, -TAIL:]):
                self.closed.add(row)
        over = written.shape[1] - self.budget
        if 0 <= over < len(self.close_ids):
            for row in set(range(len(written))) - self.closed:
                scores[row] = -torch.inf
                scores[row, self.close_ids[over]] = 0
        return scores
