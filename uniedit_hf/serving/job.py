"""A job for the model: the requested drawing or answer, and the events that are sent back to its request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from uniedit_hf.streams import Preview, TextPiece

from .api_error import ApiError, timed_out


if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(frozen=True)
class Drawing:
    """An image to draw.

    Args:
        verb: `"edit"` or `"generate"`.
        text: Instruction or prompt.
        image: The source of an edit, as the processor opens it.
        settings: All fields of the model's `ImageSettings`, `size` in place of width and height.
        source_views: Which encoders see the source.
        thinking_budget: Maximum number of reasoning tokens before the drawing.
        num_previews: Number of previews, evenly spaced.
    """

    verb: str
    text: str
    image: Image.Image | None
    settings: dict[str, Any]
    source_views: tuple[str, ...] | None = None
    thinking_budget: int = 0
    num_previews: int = 0

    @property
    def kind(self) -> Hashable:
        """Drawings of the same kind can share a batch."""
        steps = self.settings.get("num_timesteps"), self.settings.get("sampler")
        return self.verb, steps, self.source_views, self.thinking_budget > 0


@dataclass(frozen=True)
class Writing:
    """A conversation to answer.

    Args:
        messages: As `UniEditPipeline.chat` takes them.
        max_new_tokens: Maximum number of tokens in the answer.
        thinking_budget: Maximum number of reasoning tokens before the answer.
        temperature: Sampling temperature; 0 chooses the most likely token.
        top_p: Tokens are sampled from the most likely ones that together have this probability.
        seed: Seed of sampling.
        stop: Texts that end the answer and are not part of it.
        grammar: Matcher of the answer's JSON schema; every run uses a copy.
        streamed: Whether pieces are sent as they are written.
    """

    messages: list[dict]
    max_new_tokens: int
    thinking_budget: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: LLMatcher | None = None
    streamed: bool = False

    verb = "chat"

    @property
    def kind(self) -> Hashable:
        """Writings of the same kind can share a batch."""
        return self.verb, self.thinking_budget


@dataclass(frozen=True)
class Outcome:
    """The end of a job.

    Args:
        result: The image or the answer.
        thoughts: The reasoning before it.
        tokens: Number of tokens written.
        finish_reason: `"stop"` or `"length"`.
    """

    result: Image.Image | str
    thoughts: str = ""
    tokens: int = 0
    finish_reason: str = "stop"


Event = TextPiece | Preview | Outcome


@dataclass(eq=False)
class Job:
    """One request to the model. Created in the event loop; `tell` and `gone` are called from the model's thread.

    Args:
        asked: The drawing or writing.
        tokens: Its share of `batch_tokens`.
        seconds: Time limit, including waiting.
        prompt_tokens: Number of input tokens.
        loop: The event loop of its request.
    """

    asked: Drawing | Writing
    tokens: int
    seconds: float
    prompt_tokens: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    made: float = field(default_factory=time.monotonic)
    left: bool = False
    ended: bool = False
    told: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    inbox: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)

    @property
    def gone(self) -> bool:
        """Whether the result is no longer wanted: the client left, the time ran out, or the job has ended."""
        return self.ended or self.left or time.monotonic() > self.made + self.seconds

    def tell(self, event: Event | Exception) -> None:
        """Passes an event, or the error that ends the job, to its request."""
        self.ended = self.ended or isinstance(event, (Outcome, Exception))
        if not self.left:
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, event)

    def tell_text(self, thought: bool, whole: str) -> None:
        """Sends the new part of a text; a job that is run again repeats nothing."""
        if new := whole[self.told[thought] :]:
            self.told[thought] = len(whole)
            self.tell(TextPiece(new, thought))

    async def events(self) -> AsyncIterator[Event]:
        """The events of the job; the last one is an `Outcome`. Closing the generator cancels the job.

        Raises:
            ApiError: If it fails, or its time runs out.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(self.made + self.seconds - time.monotonic()):
                        event = await self.inbox.get()
                except TimeoutError:
                    raise timed_out(self.seconds) from None
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            self.left = True

    async def outcome(self) -> Outcome:
        """The outcome; raises as `events` does."""
        async for event in self.events():
            if isinstance(event, Outcome):
                return event
        raise ApiError(500, "The job ended without a result.", code="internal_error")
