"""The rows of a batch of answers: each has its own length, stop texts, random draws and grammar, so that requests with
any settings share a batch, and each result is the same as for a single request.

Both classes are passed to `generate()` of transformers: `RowChoices` chooses the next token of every row, `RowEnds`
records it and says which rows have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from uniedit_hf.streams import EventStreamer, TextPiece

from .batcher import Stopped
from .job import Job, Outcome, Writing


class AnswerRow:
    """The answer of one job while it is written.

    Args:
        job: The job.
        decode: Converts token ids to text.
        ends: Ids of the tokens that end an answer.
        longest: Maximum number of tokens, including reasoning.
    """

    def __init__(self, job: Job, decode: Callable[[list[int]], str], ends: set[int], longest: int):
        self.job, self.decode, self.ends, self.longest = job, decode, ends, longest
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.text = {True: "", False: ""}  # by whether it is reasoning
        self.stop: tuple[str, ...] = ()
        self.streamed = False
        self.streamer: EventStreamer | None = None
        if isinstance(job.asked, Writing):
            self.stop, self.streamed = job.asked.stop, job.asked.streamed
            if self.stop or self.streamed:
                thinks = job.asked.thinking_budget > 0
                self.streamer = EventStreamer(self._take_piece, decode, thinking=thinks)

    def take(self, token: int) -> bool:
        """Takes the next token and says whether the row has ended."""
        if self.finish_reason is not None or self.job.gone:
            return True
        self.ids.append(token)
        if token in self.ends:
            self._end("stop")
        elif len(self.ids) >= self.longest:
            self._end("length")
        elif self.streamer is not None:
            self.streamer.take([token])
        return self.finish_reason is not None

    def _end(self, reason: str) -> None:
        self.finish_reason = reason
        if self.streamer is not None:
            self.streamer.take([self.ids[-1]])
            self.streamer.end()

    def _take_piece(self, piece: TextPiece) -> None:
        self.text[piece.thought] += piece.text
        if not piece.thought:
            self._look_for_stops()
        if self.streamed:
            self.job.tell_text(piece.thought, self._safe(piece.thought))

    def _look_for_stops(self) -> None:
        found = [place for stop in self.stop if (place := self.text[False].find(stop)) >= 0]
        if found:
            self.text[False] = self.text[False][: min(found)]
            self.finish_reason = "stop"

    def _safe(self, thought: bool) -> str:
        """The text without an ending that may be the beginning of a stop text."""
        text = self.text[thought]
        if thought or self.finish_reason is not None:
            return text
        held = [n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(held, default=0)]

    def finish(self, answer: str, thoughts: str) -> None:
        """Sends the final event.

        Args:
            answer: The text of the row without its reasoning.
            thoughts: The reasoning.
        """
        if self.stop:
            answer = self.text[False]
        if self.streamed:
            self.job.tell_text(False, answer)
        self.job.tell(Outcome(answer, thoughts, len(self.ids), self.finish_reason or "length"))


class RowEnds(StoppingCriteria):
    """A stopping criterion: which rows have ended.

    Raises:
        Stopped: If every client has disconnected."""

    def __init__(self, rows: Sequence[AnswerRow]):
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """(R, L) ids so far to (R,)."""
        ended = [row.take(token) for row, token in zip(self.rows, input_ids[:, -1].tolist())]
        if all(row.job.gone for row in self.rows):
            raise Stopped
        return torch.tensor(ended, device=input_ids.device)


class RowChoices(LogitsProcessor):
    """A logits processor: leaves a row that samples one token, and a row with a grammar the tokens that it allows.

    A draw uses one number from the row's own generator, so it does not depend on the other rows of the batch.
    """

    def __init__(self, rows: Sequence[AnswerRow]):
        self.rows = rows
        self.generators = [torch.Generator().manual_seed(row.job.asked.seed) for row in rows]
        grammars = [row.job.asked.grammar for row in rows]
        self.matchers = [None if grammar is None else grammar.deep_copy() for grammar in grammars]
        self.begun = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (R, V) of the tokens after `input_ids` (R, L)."""
        guided = any(matcher is not None for matcher in self.matchers)
        written = input_ids[:, -1].tolist() if self.begun and guided else None
        self.begun = True
        for number, row in enumerate(self.rows):
            matcher, asked = self.matchers[number], row.job.asked
            if row.finish_reason is not None or row.job.gone:
                continue
            if matcher is not None:
                if written is not None:
                    matcher.consume_token(written[number])
                scores[number] = scores[number].masked_fill(~_allowed(matcher, scores), -torch.inf)
            if asked.temperature > 0:
                chosen = _drawn(scores[number], asked, self.generators[number])
                scores[number] = torch.full_like(scores[number], -torch.inf).scatter(0, chosen, 0.0)
        return scores


def _allowed(matcher, scores: torch.Tensor) -> torch.Tensor:
    """(V,) which tokens may come next."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
    allowed = torch.zeros(scores.shape[1], dtype=torch.bool)
    count = min(len(bits), len(allowed))
    allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
    return allowed.to(scores.device)


def _drawn(scores: torch.Tensor, asked: Writing, generator: torch.Generator) -> torch.Tensor:
    """One token (1,) of scores (V,), drawn by temperature and top_p."""
    chances = (scores / asked.temperature).double().softmax(-1)
    if asked.top_p < 1:
        ordered, places = chances.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= asked.top_p  # the first one always stays
        chances = chances.scatter(0, places[beyond], 0.0)
    sums = chances.cumsum(-1)
    number = torch.rand(1, generator=generator, dtype=torch.float64).to(scores.device)
    return torch.searchsorted(sums, number * sums[-1], right=True).clamp(max=int(chances.nonzero()[-1]))
