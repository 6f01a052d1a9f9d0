"""Parses the body of a chat completion, in all forms that servers and gateways send with status 200."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from uniedit_hf.calls.messages import PassingFailure


FORMAT = "the reply is not in the format of the API"
MOST_TOKENS = 2**40  # a larger count is an error of the server
# Raw line breaks in strings are accepted, and numbers of any length.
DECODER = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits) if len(digits) < 19 else inf)
BEFORE_JSON = (":", "/", "#", ")")  # lines that gateways put before it: comments, and )]}' against inclusion
THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
FENCED = re.compile(r"```(?:json)?\s*([{\[].*?[}\]])\s*```", re.DOTALL | re.IGNORECASE)


class ErrorBody(PassingFailure):
    """A body with status 200 that contains an error.

    Args:
        said: The error message.
        code: Its code or type, "" if there is none.
    """

    def __init__(self, said: str, code: str):
        super().__init__(f"an error with status 200: {said[:200]}")
        self.said, self.code = said, code


@dataclass(frozen=True)
class Completion:
    """The reply of a chat model.

    Args:
        text: The reply, "" if there is none.
        refusal: The reason why the model or a filter refused, or `None`.
        model: The model, as the server names it.
        finish: Why the reply ended; "length" if it was cut at the token limit.
        tokens_in: Input tokens.
        tokens_out: Output tokens.
    """

    text: str
    refusal: str | None = None
    model: str | None = None
    finish: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


def read_completion(body: str) -> Completion:
    """The completion in a body: JSON, perhaps after comment lines of a gateway, or server-sent events.

    Raises:
        PassingFailure: If the body is truncated, or is not a completion.
    """
    made = parsed_body(body)
    try:
        choice = made["choices"][0]
        if choice.get("error"):
            raise ErrorBody(*error_in(choice))
        finish = choice.get("finish_reason")
        filtered = finish == "content_filter"
        message = (
            {"content": choice["text"]} if "text" in choice and "message" not in choice else choice.get("message")
        )
        if message is None and not filtered and "message" not in choice:
            raise KeyError("message")
        message, usage = message or {}, made.get("usage")
        refusal = _text(message.get("refusal")) or ("stopped by the content filter" if filtered else None)
        return Completion(
            whole_text(_text(message.get("content"))),
            None if refusal is None else whole_text(refusal),
            whole_text(str(made["model"])) if made.get("model") else None,
            finish if isinstance(finish, str) else None,
            *token_counts(usage, "prompt_tokens", "completion_tokens"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        found = error_in(made)
        raise (ErrorBody(*found) if found else PassingFailure(FORMAT)) from error


def token_counts(usage: Any, *names: str) -> tuple[int, ...]:
    """The counts of a reply's `usage`; 0 for what is not a count, because the reply itself has been paid for."""
    found = [usage.get(name) if isinstance(usage, dict) else None for name in names]
    numbers = [value if isinstance(value, (int, float)) and isfinite(value) else 0 for value in found]
    return tuple(min(max(int(number), 0), MOST_TOKENS) for number in numbers)


def json_in(text: str) -> str:
    """The JSON of a chat model's answer, without its reasoning, a code fence or a sentence around it; the text as it
    is if it contains more than one object, or none.
    """
    text = text.strip("\ufeff \t\r\n")
    text = text if text.startswith("{") else THOUGHT.sub("", text).strip()
    fenced = FENCED.findall(text)
    text = fenced[0] if len(fenced) == 1 else text
    try:
        start = text.index("{")
        end = DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return text
    return text if "{" in text[end:] else text[start:end]


def whole_text(text: str) -> str:
    """The text with lone surrogates, which cannot be stored, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_of(body: str) -> tuple[str, str]:
    """Message and code of the error in a body; the body itself if there is no error in it."""
    try:
        error = _unwrapped(json.loads(body))
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            message = error.get("message") or error.get("detail") or body
            return whole_text(str(message)), str(error.get("code") or error.get("type") or "")
        return whole_text(str(error)), ""
    except (ValueError, RecursionError):
        return whole_text(body), ""


def error_in(made: Any) -> tuple[str, str] | None:
    """Message and code of the error in a parsed body, if it contains one instead of a reply."""
    return error_of(json.dumps(made)) if isinstance(made, dict) and made.get("error") else None


def parsed_body(body: str) -> Any:
    """The JSON of a body, without what gateways put before and behind it, such as `: processing`; events as one.

    Raises:
        PassingFailure: If the body is truncated, or is not JSON.
    """
    lines = re.split(r"\r\n|\r|\n", body.lstrip("\ufeff \t\r\n"))
    while lines and lines[0].strip()[:1] in ("", *BEFORE_JSON):
        lines.pop(0)
    try:
        if lines and re.match(r"(?:data|event|id|retry):", lines[0]):
            return _events(lines)
        made = DECODER.raw_decode("\n".join(lines).lstrip())[0]
        if isinstance(made, str):  # encoded twice
            made = DECODER.decode(made)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PassingFailure(FORMAT) from error
    return _unwrapped(made)


def _unwrapped(made: Any) -> Any:
    """An object that is alone in a list."""
    return made[0] if isinstance(made, list) and len(made) == 1 and isinstance(made[0], dict) else made


def _events(lines: list[str]) -> dict:
    """Server-sent events as one completion, or as the last event of an image API.

    Raises:
        PassingFailure: If the last event is missing, or an event is an error.
    """
    said, refused, whole, choice, ended = [], [], {}, None, False
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            ended = True
        elif data:
            event = DECODER.decode(data)
            if found := error_in(event):
                raise ErrorBody(*found)
            whole |= {name: value for name, value in event.items() if name != "choices" and value is not None}
            ended = ended or str(event.get("type")).endswith(".completed")  # from an image API
            for each in event.get("choices") or ():
                if each.get("index"):
                    continue  # another choice than the first
                choice = (choice or {}) | {name: value for name, value in each.items() if value is not None}
                message = each.get("delta") or each.get("message") or {}
                said.append(_text(message.get("content")))
                refused.append(_text(message.get("refusal")))
                ended = ended or each.get("finish_reason") is not None
    if not ended:
        raise PassingFailure("the reply is cut")
    if choice is None:
        return whole
    message = {"content": "".join(said), "refusal": "".join(refused)}
    return whole | {"choices": [choice | {"message": message}]}


def _text(content: Any) -> str:
    """The text of a message, whose content may be a part or a list of parts."""
    if isinstance(content, list):
        return "".join(map(_text, content))
    if isinstance(content, dict):
        content = content.get("text") or ""
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return str(content)
    return content if isinstance(content, str) else ""
