"""A judge: a chat model behind any OpenAI-compatible endpoint that looks at images and replies with marks.

A problem that affects every call (key, address, model, credit, a parameter) stops the run with one sentence. A call
that fails is retried with growing waits, for minutes, and then gets the status `no_reply`: the same command asks
again. Refusals and empty replies have their own statuses. None of them counts as a mark.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError
from tqdm.auto import tqdm

from uniedit_hf.calls.caller import Caller
from uniedit_hf.calls.messages import BackendDown, BackendError, ChatRequest, EncodedImage, Reply, RowFailure, data_url
from uniedit_hf.calls.openai_chat import OPENAI, OpenAiChat, OpenAiChatBackend
from uniedit_hf.evaluation.journal import Journal


WHO = "The judge"
NOT_ASKED = {"status": "no_reply", "reason": "not asked yet"}
ANSWERED = ("ok", "refused", "empty")  # not asked again unless the user asks for it


class JudgeError(ValueError):
    """No call can succeed because the key, the address, the model or a setting is wrong."""


@dataclass(frozen=True)
class JudgeSettings:
    """The judge and how it is asked; stored with every reply.

    Args:
        model: The model's id at the endpoint; a dated one, because the model behind an undated name changes.
        base_url: Address of the endpoint, up to `/v1`.
        api_key_env: The environment variable with the key; none for a local server.
        temperature: Sampling temperature; at 0 replies repeat as far as the endpoint allows.
        max_tokens: Maximum number of tokens in a reply.
        largest_side: Longest side of an image in pixels; larger ones are scaled down.
        timeout: Timeout of a call in seconds.
        attempts: Attempts per call; the default takes two minutes with the waits.
        first_wait: Seconds before the second attempt; doubled before each further one, up to a minute.
        workers: Number of concurrent calls.
        arguments: Further arguments of the call; `None` omits one of ours, such as `max_tokens`.
    """

    model: str
    base_url: str = OPENAI
    api_key_env: str | None = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 2000
    largest_side: int = 1024
    timeout: float = 120.0
    attempts: int = 8
    first_wait: float = 1.0
    workers: int = 8
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> dict:
        """The settings that affect a reply."""
        names = ("model", "base_url", "temperature", "max_tokens", "largest_side")
        stored = {name: asdict(self)[name] for name in names}
        return stored | ({"arguments": dict(self.arguments)} if self.arguments else {})

    def backend(self) -> OpenAiChatBackend:
        """Raises: JudgeError: If the key is not set, or the call has no such argument."""
        ours = {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.arguments}
        try:
            settings = OpenAiChat(
                kind="openai", model=self.model, base_url=self.base_url, api_key_env=self.api_key_env,
                concurrency=self.workers, attempts=self.attempts, first_wait=self.first_wait, timeout=self.timeout,
                image_side=self.largest_side, arguments={k: value for k, value in ours.items() if value is not None},
            )  # fmt: skip
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise JudgeError(f"judge_{first['loc'][0]}: {first['msg']}.") from None
        return OpenAiChatBackend("judge", settings, WHO)


@dataclass(frozen=True)
class Question:
    """One call: a text and its images, in order, each opened when it is needed."""

    name: str
    text: str
    pictures: Sequence[Callable[[], Image.Image]]


class Judge:
    """Asks questions and stores the replies.

    Raises:
        JudgeError: If the environment variable of the key is not set, or a setting is wrong.
    """

    def __init__(self, settings: JudgeSettings):
        self.settings = settings
        if settings.api_key_env and not os.environ.get(settings.api_key_env):
            raise JudgeError(
                f"The judge takes its key from the environment variable {settings.api_key_env}, which is empty: set "
                "it, or set judge_api_key_env to another one."
            )
        self._run(self._nothing())  # settings are checked before anything is drawn

    def check(self) -> None:
        """Checks that the judge accepts the key, before anything is drawn. A judge that is not running yet is not an
        error.

        Raises:
            JudgeError: If no call can succeed.
        """
        self._run(self._check())

    def ask_all(
        self, questions: Iterable[tuple[str, Question, str]], total: int, journal: Journal, again: Collection[str] = ()
    ) -> None:
        """Asks the questions that have no reply in the journal. At most one question per worker keeps its images in
        memory.

        After many consecutive failures it stops asking; the journal has the reasons.

        Args:
            questions: Questions, each with the name of its image and that image's `stamp`.
            total: Number of questions, for the progress bar.
            journal: Gets an entry per call: `status`, `reply`, `reason`, `model` as the endpoint names it, and the
                question.
            again: Keys of entries to ask again although the journal has a reply.

        Raises:
            JudgeError: If no call can succeed.
        """
        self._run(self._ask_all(iter(questions), total, journal, again))

    def ask(self, about: str, question: Question, stamp: str, journal: Journal) -> None:
        """Asks one question, unless the journal has a reply to the same text, settings and images. An image with the
        same stamp counts as unchanged and is not opened.
        """
        self._run(self._ask_all(iter([(about, question, stamp)]), 0, journal, ()))

    def entry(self, about: str, question: Question, journal: Journal) -> dict:
        """The journal's entry for this text and these settings, with any status."""
        known = journal.get(entry_key(about, question.name), self.settings.stored)
        return known if known.get("prompt") == question.text else NOT_ASKED

    def _run(self, work: Coroutine) -> None:
        try:
            run_to_end(work)
        except BackendError as error:
            raise JudgeError(str(error)) from error

    async def _nothing(self) -> None:
        await self.settings.backend().close()

    async def _check(self) -> None:
        backend = self.settings.backend()
        try:
            await backend.check()
        finally:
            await backend.close()

    async def _ask_all(self, questions, total: int, journal: Journal, again: Collection[str]) -> None:
        settings, backend = self.settings, self.settings.backend()
        caller = Caller("judge", backend, backend.settings, patience=max(settings.workers, 4))
        stopped: list[BackendError] = []

        async def work() -> None:
            for each in questions:  # shared by all workers
                if not stopped:
                    try:
                        await self._ask(caller, *each, journal, again)
                    except (
                        BackendError
                    ) as error:  # the other workers finish the calls that they have begun, which are paid for
                        stopped.append(error)
                    bar.update()

        try:
            with tqdm(total=total, desc="judging", disable=not total) as bar:
                async with asyncio.TaskGroup() as group:
                    for _ in range(settings.workers):
                        group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await caller.finish(asyncio.CancelledError)
            await backend.close()
        if stopped and not isinstance(stopped[0], BackendDown):
            raise stopped[0]

    async def _ask(self, caller: Caller, about: str, question: Question, stamp: str, journal: Journal, again) -> None:
        key = entry_key(about, question.name)
        known = journal.get(key, self.settings.stored)
        entry = {"key": key, "prompt": question.text, "picture": stamp, "settings": self.settings.stored}
        answered = known.get("status") in ANSWERED and key not in again
        if answered and entry.items() <= known.items():
            return
        images = await asyncio.to_thread(self._images, question)
        digest = self._digest(question, images)
        if answered and known["asked"] == digest:
            journal.append(known | entry)
            return
        request = ChatRequest("", question.text, None, images, text_first=True)
        failure = None
        try:
            made = _entry(await caller.reply(request))
        except (RowFailure, BackendDown) as error:
            failure = error
            made = {"status": "no_reply", "reply": "", "reason": str(error), "model": None}
        journal.append(entry | {"asked": digest} | made)
        if isinstance(failure, BackendDown):
            raise failure

    def _images(self, question: Question) -> tuple[EncodedImage, ...]:
        return tuple(EncodedImage(_png(opened(), self.settings.largest_side)) for opened in question.pictures)

    def _digest(self, question: Question, images: Sequence[EncodedImage]) -> str:
        """The hash of the request, including the settings."""
        shown = [{"type": "image_url", "image_url": {"url": data_url(image.data)}} for image in images]
        content = [{"type": "text", "text": question.text}, *shown]
        asked = json.dumps([self.settings.stored, [{"role": "user", "content": content}]], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


def run_to_end(work: Coroutine) -> None:
    """Runs a coroutine, also if an event loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def stamp(path: Path) -> str:
    """Size and time of an image file, by which a later run recognizes it."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def entry_key(about: str, question: str) -> str:
    """The journal's key of a question about an image."""
    return f"{about} {question}"


def _entry(reply: Reply) -> dict:
    """The journal's entry for a reply."""
    text, reason = reply.text or "", "cut at max_tokens" if reply.cut else ""
    status = "refused" if reply.refusal is not None else "ok" if text.strip() else "empty"
    if status == "empty":
        reason = f"an empty reply{f', {reason}' if reason else ''}"
    return {"status": status, "reply": text, "reason": reply.refusal or reason, "model": reply.model}


def _png(image: Image.Image, largest: int) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
