"""Runs a method of the pipeline as a generator: texts and previews as they come, then the result.

The method runs in its own thread and sends events. Closing the generator stops it at the next token or step and joins
the thread, so no work continues after the consumer is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from PIL import Image
from transformers.generation.streamers import BaseStreamer

from uniedit_hf.thinking import CLOSE, OPEN, split_thoughts


@dataclass(frozen=True)
class TextPiece:
    """A piece of text: reasoning (`thought`) or answer."""

    text: str
    thought: bool


@dataclass(frozen=True)
class Preview:
    """The predicted final image after `step` of `steps`."""

    step: int
    steps: int
    image: Image.Image


@dataclass(frozen=True)
class Finished:
    """The last event: an image or an answer, and the reasoning before it."""

    result: Image.Image | str
    thoughts: str


Event = TextPiece | Preview | Finished


class Stopped(Exception):
    """Raised in the worker when the consumer has closed the generator."""


class EventStreamer(BaseStreamer):
    """A streamer for `generate()` that sends the text as events, piece by piece.

    Args:
        tell: Takes events, or raises `Stopped`.
        decode: Converts token ids to text.
        thinking: Whether the text before a closing tag is reasoning.
        only_thoughts: Whether all text is reasoning, with or without tags, as before a drawing.
    """

    def __init__(
        self,
        tell: Callable[[Event], None],
        decode: Callable[[list[int]], str],
        thinking: bool,
        only_thoughts: bool = False,
    ):
        self.tell, self.decode, self.thinking, self.only_thoughts = tell, decode, thinking, only_thoughts
        self.ids: list[int] = []
        self.told = {True: "", False: ""}
        self.thoughts = ""
        self.prompt_seen = False

    def put(self, value) -> None:
        """Receives token ids, first those of the prompt."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.take(value.flatten().tolist())

    def take(self, ids: list[int]) -> None:
        """Receives token ids after the prompt."""
        self.ids += ids
        self._tell_new(self.decode(self.ids), whole=False)

    def end(self) -> None:
        """Sends the text that was held back."""
        self._tell_new(self.decode(self.ids), whole=True)

    def _tell_new(self, text: str, whole: bool) -> None:
        if not whole and (text.endswith("\ufffd") or _may_become_tag(text)):
            self.tell(TextPiece("", True))  # nothing new, but this notices a closed generator
            return
        thoughts, answer = split_thoughts(text)
        if self.only_thoughts:
            thoughts, answer = " ".join(part for part in (thoughts, answer) if part), ""
        elif self.thinking and not whole and CLOSE not in text:
            thoughts, answer = thoughts or answer, ""
        self.thoughts = thoughts
        for thought, now in ((True, thoughts), (False, answer)):
            before = self.told[thought]
            if now.startswith(before) and now != before:
                self.tell(TextPiece(now[len(before) :], thought))
                self.told[thought] = now


def _may_become_tag(text: str) -> bool:
    return any(text.endswith(tag[:length]) for tag in (OPEN, CLOSE) for length in range(1, len(tag)))


def stream_answer(verb: Callable[..., str], decode: Callable[[list[int]], str], **arguments: Any) -> Iterator[Event]:
    """The events of a method that answers; `arguments` are those of the method."""

    def work(tell):
        streamer = EventStreamer(tell, decode, thinking=bool(arguments.get("thinking_budget")))
        answer = verb(**arguments, streamer=streamer)
        return Finished(answer, streamer.thoughts)

    return _run(work)


def stream_drawing(
    verb: Callable[..., Image.Image],
    decode: Callable[[list[int]], str],
    to_pil: Callable[[Any], Image.Image],
    num_previews: int,
    **arguments: Any,
) -> Iterator[Event]:
    """The events of a method that draws, with `num_previews` evenly spaced previews besides the result."""

    def work(tell):
        streamer = EventStreamer(tell, decode, thinking=True, only_thoughts=True)

        def watch(pipe, index, timestep, callback_kwargs):
            step, steps = index + 1, callback_kwargs["num_steps"]
            if step < steps and step * num_previews // steps != index * num_previews // steps:
                tell(Preview(step, steps, to_pil(callback_kwargs["preview"]()[0])))
            else:
                tell(TextPiece("", True))

        image = verb(**arguments, streamer=streamer, callback_on_step_end=watch)
        return Finished(image, streamer.thoughts)

    return _run(work)


def _run(work: Callable[[Callable[[Event], None]], Finished]) -> Iterator[Event]:
    events: SimpleQueue[Event | BaseException] = SimpleQueue()
    left = threading.Event()

    def tell(event: Event) -> None:
        if left.is_set():
            raise Stopped
        if event != TextPiece("", True):
            events.put(event)

    def run() -> None:
        try:
            events.put(work(tell))
        except Stopped:
            pass
        except BaseException as error:  # raised again where the events are read
            events.put(error)

    thread = threading.Thread(target=run, name="uniedit-stream", daemon=True)
    thread.start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Finished):
                return
    finally:
        left.set()
        thread.join()
