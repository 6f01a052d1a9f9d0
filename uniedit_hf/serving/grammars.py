"""Answers in JSON: llguidance turns a schema into a matcher, which says after every token which tokens may follow."""

from __future__ import annotations

from functools import cached_property

import llguidance.hf
from llguidance import LLMatcher, LLTokenizer

from .api_error import ApiError


LONGEST_SCHEMA = 50_000  # characters
# At most one space between tokens: a weak model would fill its answer with white space.
SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


class Grammars:
    """Makes matchers for the tokens of a model.

    Args:
        tokenizer: A tokenizer of transformers.
        vocab_size: Size of the model's vocabulary; it may be larger than the tokenizer's.
    """

    def __init__(self, tokenizer, vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size

    @cached_property
    def tokens(self) -> LLTokenizer | None:
        """The tokenizer in the form of the matchers, or None if its tokens cannot spell JSON."""
        try:
            return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.vocab_size)
        except ValueError:
            return None

    def matcher(self, schema: str) -> LLMatcher:
        """The matcher of a JSON schema.

        Raises:
            ApiError: If the schema is invalid, or the model's tokens cannot spell JSON.
        """
        if self.tokens is None:
            raise ApiError(
                400,
                "The tokenizer of this model has no tokens for the signs of JSON: leave out response_format.",
                param="response_format",
            )
        if len(schema) > LONGEST_SCHEMA:
            raise ApiError(400, f"The schema has more than {LONGEST_SCHEMA:,} characters.", param="response_format")
        matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_json_schema(schema, defaults=SPACING))
        if matcher.is_error():
            problem = " ".join(matcher.get_error().split())[:300]
            raise ApiError(400, f"The JSON schema cannot be followed: {problem}.", param="response_format")
        return matcher
