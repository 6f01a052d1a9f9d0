"""Thinking first: the model writes its reasoning between two tags, then answers or draws, as BAGEL's reference does.

The prompt that asks a model to think comes from its processor (`thinking_prompts`).
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


OPEN, CLOSE = "<think>", "</think>"
TAIL = 8  # number of tokens in which a closing tag is searched; in Qwen2 it takes three


def split_thoughts(text: str) -> tuple[str, str]:
    """Splits a model's text into reasoning and the rest, both without tags. Without tags there is no reasoning."""
    before, closed, after = text.partition(CLOSE)
    if not closed and not before.lstrip().startswith(OPEN):
        return "", text.strip()
    return before.strip().removeprefix(OPEN).strip(), after.strip()


class ThinkingBudget(LogitsProcessor):
    """Closes the reasoning of every row that has not closed it after `budget` tokens, so that an answer follows.

    Args:
        tokenizer: Encodes the closing tag.
        prompt_length: Tokens of the context in `input_ids`.
        budget: Maximum number of reasoning tokens, not counting the closing tag.
    """

    def __init__(self, tokenizer, prompt_length: int, budget: int):
        self.tokenizer, self.prompt_length, self.budget = tokenizer, prompt_length, budget
        self.close_ids = tokenizer(CLOSE, add_special_tokens=False)["input_ids"]
        self.closed: set[int] = set()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (rows, vocabulary) of the next token after `input_ids` (rows, length)."""
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
