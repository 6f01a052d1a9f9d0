"""A judge: a chat model behind any OpenAI-compatible endpoint that looks at pictures and replies with marks.

A setting that is wrong for every call (key, address, model) stops the run with one sentence. What befalls one call is
tried again and then becomes its status; nothing is marked in its place.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from uniedit_hf.evaluation.journal import Journal


PASSING = (408, 409, 425, 429)
LONGEST_MESSAGE = 300


class JudgeError(ValueError):
    """No call can succeed: the key, the address or the model is wrong."""


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge, and how it is asked; stored with every reply.

    Args:
        model: The model's id at the endpoint; a dated one, as undated names change what they mean.
        base_url: Up to `/v1`.
        api_key_env: The environment variable that holds the key; none for a local server.
        temperature: 0 replies alike as far as the endpoint does.
        max_tokens: Of a reply.
        largest_side: Of a picture in pixels; larger ones are scaled down.
        timeout: Seconds.
        attempts: At one call.
        workers: Calls at a time.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 2000
    largest_side: int = 1024
    timeout: float = 120.0
    attempts: int = 3
    workers: int = 8

    @property
    def stored(self) -> dict:
        """What decides a reply, without the rest."""
        names = ("model", "base_url", "temperature", "max_tokens", "largest_side")
        return {name: asdict(self)[name] for name in names}


@dataclass(frozen=True)
class Question:
    """One call: a text and the pictures it speaks of, in order, each opened when it is needed."""

    name: str
    text: str
    pictures: Sequence[Callable[[], Image.Image]]


class Judge:
    """Asks questions and keeps the replies.

    Raises:
        JudgeError: The environment variable of the key is not set.
    """

    def __init__(self, settings: JudgeSettings):
        import httpx2

        self.settings = settings
        self.key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        if settings.api_key_env and not self.key:
            raise JudgeError(
                f"The judge takes its key from the environment variable {settings.api_key_env}, which is empty: set "
                "it, or set judge_api_key_env to another one."
            )
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx2.Client(timeout=settings.timeout, headers=headers)

    def ask_all(self, questions: Iterable[tuple[str, Question, str]], total: int, journal: Journal) -> None:
        """Asks what the journal holds no reply to. At most twice as many questions as workers wait with their
        pictures.

        Args:
            questions: Each with the name of the picture that it is about, and that picture's `stamp`.
            total: How many there are, for the progress bar.
            journal: Takes an entry a call: `status`, `reply`, `reason`, `model` as the endpoint names it, and what was
                asked.

        Raises:
            JudgeError: No call can succeed.
        """
        questions = iter(questions)
        with ThreadPoolExecutor(self.settings.workers) as pool, tqdm(total=total, desc="judging") as bar:
            while batch := list(islice(questions, 2 * self.settings.workers)):
                for _ in pool.map(lambda each: self.ask(*each, journal), batch):
                    bar.update()

    def ask(self, about: str, question: Question, stamp: str, journal: Journal) -> None:
        """Asks one question, unless the journal holds its reply: to the same words, settings and pictures. A picture
        with the same stamp is the same and is not opened."""
        key = entry_key(about, question.name)
        known = journal.entries.get(key, {})
        entry = {"key": key, "prompt": question.text, "picture": stamp, "settings": self.settings.stored}
        answered = known.get("status") in ("ok", "refused")
        if answered and entry.items() <= known.items():
            return
        messages, digest = self._messages(question)
        if answered and known["asked"] == digest:
            journal.append(known | entry)
            return
        journal.append(entry | {"asked": digest} | self._reply(messages))

    def _messages(self, question: Question) -> tuple[list[dict], str]:
        """What is sent, and its hash together with the settings."""
        content: list[dict] = [{"type": "text", "text": question.text}]
        for opened in question.pictures:
            data = base64.b64encode(_png(opened(), self.settings.largest_side)).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        messages = [{"role": "user", "content": content}]
        asked = json.dumps([self.settings.stored, messages], sort_keys=True)
        return messages, hashlib.sha256(asked.encode()).hexdigest()

    def _reply(self, messages: list[dict]) -> dict:
        reason = ""
        for attempt in range(self.settings.attempts):
            if attempt:
                time.sleep(min(0.1 * 4**attempt, 30))
            made, reason = self._post(messages)
            if made is not None:
                return made
        return {"status": "no_reply", "reply": "", "reason": reason, "model": None}

    def _post(self, messages: list[dict]) -> tuple[dict | None, str]:
        """The entry of a reply, or why there is none this time."""
        import httpx2

        settings = self.settings
        body = {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        try:
            response = self.client.post(f"{settings.base_url.rstrip('/')}/chat/completions", json=body)
        except httpx2.TimeoutException:
            return None, "no reply in time"
        except httpx2.HTTPError as error:
            return None, f"the connection broke ({type(error).__name__})"
        status, text = response.status_code, self._without_key(response.text)
        if status in (401, 403):
            variable = settings.api_key_env
            remedy = f"check {variable}" if variable else "name the variable of a key as judge_api_key_env"
            raise JudgeError(f"The judge refuses the {'key' if variable else 'call'} (HTTP {status}): {remedy}.")
        if text.lstrip()[:1] == "<" and status < 500:
            raise JudgeError(
                f"The judge at {settings.base_url} answers with HTML (HTTP {status}), expected JSON: check "
                "judge_base_url, which ends in /v1 for most servers."
            )
        if status == 404:
            raise JudgeError(
                f"The judge at {settings.base_url} knows no model {settings.model!r} or has another address (HTTP "
                f"404: {text}): check judge_model and judge_base_url."
            )
        if status in PASSING or status >= 500:
            return None, f"HTTP {status}: {text}"
        if status != 200:
            return {"status": "refused", "reply": "", "reason": f"HTTP {status}: {text}", "model": None}, ""
        return _read(response.text)

    def _without_key(self, text: str) -> str:
        text = " ".join(text.split())
        return (text.replace(self.key, "***") if self.key else text)[:LONGEST_MESSAGE]

    def close(self) -> None:
        self.client.close()


def stamp(path: Path) -> str:
    """Size and time of a picture's file, by which a later run knows it again."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def entry_key(about: str, question: str) -> str:
    """The journal's key of a question about a picture."""
    return f"{about} {question}"


def _read(text: str) -> tuple[dict | None, str]:
    try:
        made = json.loads(text)
        choice = made["choices"][0]
        message = choice["message"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None, "the reply is not in the format of the API"
    refusal = message.get("refusal") or (choice.get("finish_reason") == "content_filter" and "content filter")
    entry = {"reply": message.get("content") or "", "model": made.get("model"), "reason": refusal or ""}
    if choice.get("finish_reason") == "length":
        entry["reason"] = "cut at max_tokens"
    return entry | {"status": "refused" if refusal else "ok"}, ""


def _png(image: Image.Image, largest: int) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
