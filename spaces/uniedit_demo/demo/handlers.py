"""Functions of the buttons: a request goes to both models with the same seed, and results are shown as they come."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from uniedit_hf.streams import Event, Finished, Preview, TextPiece

from .limits import Limits, refusal
from .models import Pair
from .notices import doubts_of
from .questions import embedded_questions


COMPARISONS = ("Base and tuned", "Source and base", "Source and tuned")
SIDES = ("Base", "Tuned")
ANY_SEED = -1
PAUSE = 0.1  # seconds between two changes of the page: each costs the server some 20 ms


@dataclass
class Side:
    """The results of one of the two models so far."""

    result: Image.Image | str | None = None
    thoughts: str = ""
    progress: str = "waiting"
    changed: set[str] = field(default_factory=set)

    def take(self, event: Event) -> None:
        """Adds an event, and notes which parts changed."""
        if isinstance(event, TextPiece) and event.thought:
            self.thoughts, self.progress = self.thoughts + event.text, "thinking"
            self.changed |= {"thoughts"}
        elif isinstance(event, TextPiece):
            self.result, self.progress = (self.result or "") + event.text, "writing"
            self.changed |= {"result"}
        elif isinstance(event, Preview):
            self.result, self.progress = event.image, f"step {event.step} of {event.steps}"
            self.changed |= {"result"}
        else:
            self.result, self.thoughts, self.progress = event.result, event.thoughts, "finished"
            self.changed |= {"result", "thoughts"}

    def show(self, name: str) -> Any:
        """The value of `result` or `thoughts` if it changed, else what leaves its place on the page as it is."""
        if name not in self.changed:
            return gr.skip()
        self.changed = self.changed - {name}
        return getattr(self, name)


class Handlers:
    """The functions behind the page and its API.

    Args:
        pair: The models.
        limits: Limits of one user.
    """

    def __init__(self, pair: Pair, limits: Limits):
        self.pair = pair
        self.limits = limits

    def edit(
        self,
        picture: Image.Image,
        instruction: str,
        seed: float | None = ANY_SEED,
        steps: int = 0,
        text_guidance: float = 0,
        image_guidance: float = 0,
        thinking: int = 0,
    ) -> Iterator[tuple]:
        """Edits an image by an instruction with the base model and with the tuned model, from the same seed.

        Args:
            image: The image to edit.
            instruction: The change; it may contain questions about the image, as in "if the sign is red, ...".
            seed: Seed of the noise, a whole number; -1 for a random one.
            steps: Steps of the drawing; 0 for the models' default. Models that draw token by token have none.
            text_guidance: Guidance scale of the instruction, from 1; 0 for the models' default.
            image_guidance: Guidance scale of the image, from 1; 0 for the models' default.
            thinking: Maximum number of reasoning tokens before the drawing; 0 for none.

        Returns:
            The images of base and tuned model, their thoughts, the seed, and how it went.
        """
        instruction = self._read(instruction, "an instruction")
        if picture is None:
            raise refusal("Please upload an image first.", title="Something is missing")
        defaults, chosen = self.pair.defaults, _seed(seed)
        settings = {
            "image": picture,
            "instruction": instruction,
            "seed": chosen,
            "num_timesteps": (int(steps) or defaults.steps) + 1,
            "text_guidance_scale": text_guidance or defaults.text_guidance,
            "image_guidance_scale": image_guidance or defaults.image_guidance,
            "guidance_renorm": defaults.edit_renorm,
            "temperature": defaults.temperature,
            "thinking_budget": self._thinking_budget(thinking),
        }
        yield from self._draw("stream_edit", settings)

    def generate(
        self, prompt: str, seed: float | None = ANY_SEED, steps: int = 0, text_guidance: float = 0, thinking: int = 0
    ) -> Iterator[tuple]:
        """Draws an image for a description with the base model and with the tuned model, from the same seed.

        Args:
            prompt: A description of the image.
            seed: Seed of the noise, a whole number; -1 for a random one.
            steps: Steps of the drawing; 0 for the models' default. Models that draw token by token have none.
            text_guidance: Guidance scale of the description, from 1; 0 for the models' default.
            thinking: Maximum number of reasoning tokens before the drawing; 0 for none.

        Returns:
            The images of base and tuned model, their thoughts, the seed, and how it went.
        """
        prompt = self._read(prompt, "what to draw")
        defaults = self.pair.defaults
        settings = {
            "prompt": prompt,
            "seed": _seed(seed),
            "num_timesteps": (int(steps) or defaults.steps) + 1,
            "text_guidance_scale": text_guidance or defaults.text_guidance,
            "guidance_interval": defaults.drawing_interval,
            "temperature": defaults.temperature,
            "thinking_budget": self._thinking_budget(thinking),
        }
        yield from self._draw("stream_generate", settings)

    def ask(self, picture: Image.Image | None, question: str, thinking: int = 0) -> Iterator[tuple]:
        """Answers a question about an image with the base model and with the tuned model.

        Args:
            image: The image of the question; none for a question without an image.
            question: The question.
            thinking: Maximum number of reasoning tokens before the answer; 0 for none.

        Returns:
            The answers of base and tuned model, their thoughts, and how it went.
        """
        question = self._read(question, "a question")
        settings = {
            "image": picture,
            "question": question,
            "max_new_tokens": self.pair.defaults.answer_tokens,
            "thinking_budget": self._thinking_budget(thinking),
        }
        begun, sides = time.perf_counter(), (Side(), Side())
        for base, tuned, status in self._progress("stream_answer", settings, sides):
            yield base.show("result"), tuned.show("result"), base.show("thoughts"), tuned.show("thoughts"), status
        base, tuned = sides
        status = _done(begun, doubts=doubts_of(self.pair, picture, question))
        yield base.result, tuned.result, base.thoughts, tuned.thoughts, status

    def why(self, picture: Image.Image | None, instruction: str) -> str:
        """Asks both models the questions in an instruction, to see which condition was true for them.

        Args:
            image: The image that was edited.
            instruction: The instruction.

        Returns:
            A table in Markdown: question, answer of the base model, answer of the tuned model.
        """
        instruction = self.limits.check_text(instruction, "an instruction")
        questions = embedded_questions(instruction)
        if not questions or picture is None:
            return "This instruction asks nothing about the image, so there is no condition to look up."
        tokens = min(self.pair.defaults.answer_tokens, 64)
        answers = [
            pipe.answer([picture] * len(questions), questions, max_new_tokens=tokens)
            for pipe in (self.pair.base, self.pair.tuned)
        ]
        rows = [f"| {_cell(q)} | {_cell(b)} | {_cell(t)} |" for q, b, t in zip(questions, *answers)]
        return "\n".join(["| Asked about the source | Base | Tuned |", "|---|---|---|", *rows])

    # --- what came in ---------------------------------------------------------------------------------------------

    def _read(self, text: str, what: str) -> str:
        """The text within limits."""
        return self.limits.check_text(text, what)

    def _thinking_budget(self, tokens: float) -> int:
        if tokens and not self.pair.thinks:
            raise refusal("These models cannot be asked to think first: leave it at 0.", title="That did not work")
        return min(int(tokens), self.pair.defaults.thinking)

    # --- both models ----------------------------------------------------------------------------------------------

    def _draw(self, verb: str, settings: dict) -> Iterator[tuple]:
        begun, seed, sides = time.perf_counter(), settings["seed"], (Side(), Side())
        doubts = doubts_of(self.pair, settings.get("image"), settings.get("instruction") or settings.get("prompt"))
        yield None, None, "", "", seed, "Beginning ..."
        # a family that draws without steps or renormalization has no such settings
        known = self.pair.base.known_settings | {"image", "instruction", "prompt", "seed", "thinking_budget"}
        settings = {name: value for name, value in settings.items() if name in known}
        for base, tuned, status in self._progress(verb, settings, sides):
            images = base.show("result"), tuned.show("result")
            yield *images, base.show("thoughts"), tuned.show("thoughts"), gr.skip(), status
        base, tuned = sides
        facts = [f"seed {seed}"]
        if "num_timesteps" in settings:
            facts.append(f"{settings['num_timesteps'] - 1} steps")
        status = _done(begun, ", ".join(facts), doubts=doubts)
        yield base.result, tuned.result, base.thoughts, tuned.thoughts, seed, status

    def _progress(self, verb: str, settings: dict, sides: tuple[Side, Side]) -> Iterator[tuple[Side, Side, str]]:
        """Both sides as they change, but not more often than every `PAUSE` seconds, with a line that says how far they
        are; the end is the caller's to show."""
        shown = time.monotonic()
        streams = [getattr(pipe, verb)(**settings) for pipe in (self.pair.base, self.pair.tuned)]
        try:
            for which, event in merged(streams, self.limits.seconds):
                first = sides[which].result is None
                sides[which].take(event)
                if all(side.progress == "finished" for side in sides):
                    return
                if (first and sides[which].result is not None) or time.monotonic() - shown >= PAUSE:
                    shown = time.monotonic()
                    yield *sides, " · ".join(f"{name}: {side.progress}" for name, side in zip(SIDES, sides))
        except gr.Error:  # ours, which is a ValueError as well
            raise
        except ValueError as error:  # of the pipeline, which says what is wrong in one sentence
            raise refusal(str(error), title="That did not work") from error


def merged(streams: Sequence[Iterator[Event]], seconds: float) -> Iterator[tuple[int, Event]]:
    """The events of several streams by turns, each with the number of its stream. Closing it closes all of them.

    Raises:
        gr.Error: If they take longer than so many seconds.
    """
    running, end = dict(enumerate(streams)), time.monotonic() + seconds
    try:
        while running:
            for which in list(running):
                event = next(running[which])
                if isinstance(event, Finished):
                    del running[which]
                elif time.monotonic() > end:
                    raise refusal(
                        f"This took longer than {seconds:.0f} seconds and was stopped. Please try fewer steps.",
                        title="Out of time",
                    )
                yield which, event
    finally:
        for stream in streams:
            stream.close()


def compare(choice: str, source: Image.Image | None, base: Image.Image | None, tuned: Image.Image | None):
    """The two images to lay over each other, of the same size; nothing if one of them is missing."""
    pairs = dict(zip(COMPARISONS, ((base, tuned), (source, base), (source, tuned))))
    first, second = pairs[choice]
    if first is None or second is None:
        return None
    return first.resize(second.size, Image.Resampling.BICUBIC), second


def _seed(seed: float | None) -> int:
    if seed is None or seed == ANY_SEED:
        return secrets.randbits(31)
    if not (float(seed).is_integer() and 0 <= seed < 2**31):
        raise refusal(
            "The seed must be a whole number from 0 to 2,147,483,647, or -1 for a new one.", title="Not a seed"
        )
    return int(seed)


def _done(begun: float, *facts: str, doubts: list[str]) -> str:
    return " · ".join(["Finished", *facts, f"{time.perf_counter() - begun:.1f} s", *doubts])


def _cell(text: str) -> str:
    """A text as a cell of a table in Markdown: nothing in it may end the cell or become mark-up."""
    text = " ".join(text.split()) or "(no answer)"
    for mark in ("\\", "|", "<", ">", "[", "]", "*", "_", "`", "!", "$"):
        text = text.replace(mark, f"&#{ord(mark)};")
    return text
