"""Calls one backend, with cache, budget, rate limit, retries and a limit of calls in flight."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from uniedit_hf.calls.budget import Budget, price_of
from uniedit_hf.calls.cache import CallCache
from uniedit_hf.calls.call_settings import BackendSettings, BudgetSettings
from uniedit_hf.calls.chat_bodies import json_in, whole_text
from uniedit_hf.calls.messages import (
    Answer,
    BackendDown,
    BackendError,
    ChatRequest,
    EditRequest,
    PassingFailure,
    Reply,
    RowFailure,
    request_key,
)


# The run stops after this many consecutive calls that failed all attempts (the server is down), or this many calls
# without a single reply (the settings are wrong).
FAILURES_IN_A_ROW = 20
# Seconds of failed connections after which a server that has never replied counts as not running.
STARTED_BY = 10.0
# After this many replies in the wrong form, and none in the requested one, the server cannot give it.
MALFORMED_AT_FIRST = 20
LONGEST_WAIT = 60.0
# Placeholder keys of local servers, such as "EMPTY", are not secret and may be words of a reply.
SHORTEST_KEY = 12


@dataclass(frozen=True)
class NoAnswer:
    """The reason why a chat model gave no usable answer."""

    reason: str
    detail: str
    reply: str = ""


class Caller:
    """Asks a backend.

    Args:
        name: Its name in the settings.
        backend: Has `parameters`, a text that identifies all settings that affect replies, `key`, which must not be
            stored, and `async reply(request)`.
        settings: Limits and prices.
        cache: The cache of replies, unless the caller's user stores them.
        budget: The budget; unlimited by default.
        patience: Number of consecutive failed calls that stops the run.
    """

    def __init__(
        self, name: str, backend, settings: BackendSettings, cache: CallCache | None = None,
        budget: Budget | None = None, patience: int | None = None,
    ):  # fmt: skip
        self.name, self.backend, self.settings, self.cache = name, backend, settings, cache
        self.budget, self.patience = budget or Budget(BudgetSettings()), patience or FAILURES_IN_A_ROW
        self.who = getattr(backend, "who", f"The backend {name}")
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.running: dict[bytes, asyncio.Task[Reply]] = {}
        self.stopped: BackendError | None = None
        self.next_start = 0.0
        self.failures = self.unanswered = 0
        self.made = self.cached = self.failed = 0
        self.first_unconnected: float | None = None
        self.malformed: list[bytes] = []  # keys of replies in another form
        self.well_formed = self.formless = False

    async def reply(self, request: ChatRequest | EditRequest) -> Reply:
        """The reply, from the cache if the same request was made before.

        Raises:
            RowFailure: If this request cannot be answered.
            BudgetReached: If no further call is allowed.
            BackendError: If no call can succeed.
        """
        key = request_key(self.backend.parameters, request)
        found = self.cache.get(key) if self.cache else None
        if found is not None:
            self.cached += 1
            return await self._read(key, found, request)
        if key not in self.running:  # otherwise two rows make the same request at the same time: one call
            call = self.running[key] = asyncio.create_task(self._kept(key, request))
            call.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(
            self.running[key]
        )  # the requesting task may be cancelled; the paid reply is still stored

    async def finish(self, kind: type[BaseException] | None = None, *_: Any) -> None:
        """Waits for the calls in flight, which are paid for, and begins no other; after Ctrl-C it cancels them.

        Args:
            kind: Type of the error that ends the run.
        """
        self.stopped = self.stopped or BackendError(f"{self.who} is asked nothing more.")
        calls = list(self.running.values())
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            for call in calls:
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _forget(self, key: bytes, call: asyncio.Task) -> None:
        del self.running[key]
        if not call.cancelled() and isinstance(call.exception(), BackendError):
            self.stopped = self.stopped or call.exception()

    async def _kept(self, key: bytes, request: ChatRequest | EditRequest) -> Reply:
        async with self.slots:
            if self.stopped:
                raise self.stopped
            reply = await self._paid(request)
            money = price_of(reply, self.settings.price)
            if self.cache:
                self.cache.put(key, self.name, reply, money)
                if self.formless:
                    self.cache.set_aside([key])
            self.budget.end_call(reply, money)
            self.made += 1
            return await self._read(key, reply, request)

    async def _read(self, key: bytes, reply: Reply, request: ChatRequest | EditRequest) -> Reply:
        """The reply of an editor with its image, which may have to be downloaded. The reply has been paid for, so a
        failed download does not request another one.
        """
        if isinstance(request, ChatRequest) or reply.text is None:
            return reply
        for attempt in range(self.settings.attempts):
            try:
                image = await self.backend.read(reply.text)
                break
            except PassingFailure as failure:
                last = failure
            if attempt + 1 < self.settings.attempts:
                await asyncio.sleep(self._wait(attempt, last))
        else:
            self.failed += 1
            raise RowFailure(f"the image is paid for and could not be downloaded ({last}); run the same command again")
        if image is None:
            return reply
        if self.cache:
            self.cache.read_at_last(key, image)
        return replace(reply, image=image, text=None)

    async def answer(self, request: ChatRequest) -> Answer | NoAnswer:
        """The reply of a chat model in the requested form; a reply in another form is requested again."""
        detail = text = ""
        for attempt in range(self.settings.malformed_attempts):
            again = replace(request, attempt=attempt)
            try:
                reply = await self.reply(again)
            except RowFailure as failure:
                return NoAnswer("the call failed", str(failure))
            if reply.refusal is not None:
                return NoAnswer("the model refused", reply.refusal)
            text = reply.text or ""
            try:
                answer = request.answer.model_validate_json(json_in(text))
                self.well_formed = True
                return answer
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                detail = f"{'.'.join(map(str, first['loc'])) or 'the reply'}: {first['msg']}"
                self._note_malformed(again, detail)
        return NoAnswer("the reply does not have the requested form", detail, text)

    def set_unusable(self, request: ChatRequest | EditRequest) -> None:
        """Marks the reply to a request as unusable, so that `retry` asks again."""
        if self.cache:
            self.cache.mark([request_key(self.backend.parameters, request)])

    def _note_malformed(self, request: ChatRequest, detail: str) -> None:
        """Marks a reply in the wrong form. Raises `BackendError` if all replies had the wrong form; the next run asks
        again.
        """
        self.malformed.append(request_key(self.backend.parameters, request))
        if self.cache:
            self.cache.mark(self.malformed[-1:])
        if len(self.malformed) < MALFORMED_AT_FIRST or self.well_formed:
            return
        self.formless = True
        if self.cache:
            self.cache.set_aside(self.malformed)
        self.stopped = self.stopped or BackendError(
            f"{self.who} gave none of its first {len(self.malformed)} replies in the requested form; the last: "
            f"{detail}. Check that its server follows response_format with a JSON schema (docs/synthesis.md lists the "
            "schemas), then run the same command again: it asks the same again."
        )
        raise self.stopped

    async def _paid(self, request: ChatRequest | EditRequest) -> Reply:
        self.budget.begin_call()
        try:
            reply = await self._retried(request)
        except BaseException as error:
            self.budget.fail_call()
            if isinstance(error, RowFailure):
                if not isinstance(error.__cause__, PassingFailure):
                    self.failed += 1  # it may succeed after a person intervened, so the next run asks again
                self._note_unanswered(error)
            raise
        self.failures = 0
        return reply

    async def _retried(self, request: ChatRequest | EditRequest) -> Reply:
        for attempt in range(self.settings.attempts):
            try:
                reply = await self._paced(request)
                self.first_unconnected = math.inf
                return reply
            except PassingFailure as failure:
                last = failure
                self._note_connection(failure)
            if self.stopped:
                raise self.stopped
            if attempt + 1 < self.settings.attempts:
                await asyncio.sleep(self._wait(attempt, last))
        self.failed += 1
        self.failures += 1
        if self.failures >= self.patience:
            what = f"failed {self.failures} calls" if last.reached else f"was not reached by {self.failures} calls"
            raise BackendDown(
                f"{self.who} {what} in a row, the last with {last}; check that its server is up, then run the same "
                "command again: what has been answered is kept."
            ) from last
        raise RowFailure(f"{self.settings.attempts} attempts failed, the last with {last}") from last

    def _note_connection(self, failure: PassingFailure) -> None:
        """Raises `BackendDown` if the server could never be reached."""
        now = time.monotonic()
        if failure.connected:
            self.first_unconnected = math.inf
        elif self.first_unconnected is None:
            self.first_unconnected = now
        elif now - self.first_unconnected >= STARTED_BY:
            raise BackendDown(
                f"{self.who} cannot be reached ({failure}, for {now - self.first_unconnected:.0f} s): check base_url "
                "and start its server, then run the same command again: what has been answered is kept."
            ) from failure

    def _note_unanswered(self, failure: RowFailure) -> None:
        self.unanswered += 1
        if self.unanswered >= self.patience and not self.made and not self.cached:
            raise BackendError(
                f"{self.who} answered none of {self.unanswered} calls, the last with {failure}; check its settings, "
                "then run the same command again."
            ) from failure

    async def _paced(self, request: ChatRequest | EditRequest) -> Reply:
        if self.settings.requests_per_minute is not None:
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + 60 / self.settings.requests_per_minute
            await asyncio.sleep(start - now)
        return _clean(await self.backend.reply(request), self.backend.key)

    def _wait(self, attempt: int, failure: PassingFailure) -> float:
        """Seconds before the next attempt: doubling, with jitter, and at least as long as the server asked for."""
        doubled = self.settings.first_wait * 2**attempt * random.uniform(0.5, 1.0)
        return min(max(doubled, failure.wait), LONGEST_WAIT)


def _clean(reply: Reply, key: str) -> Reply:
    """The reply in a form that can be stored: without lone surrogates, and without the key in case a server repeats
    it, because replies are stored and shown in reports.
    """
    texts = {name: getattr(reply, name) for name in ("model", "text", "refusal")}
    clean = {name: whole_text(text) for name, text in texts.items() if text}
    if len(key) >= SHORTEST_KEY:
        clean = {name: text.replace(key, "***") for name, text in clean.items()}
    found = {name: text for name, text in clean.items() if text != texts[name]}
    return replace(reply, **found) if found else reply
