"""Parses the body of a chat completion, in all forms that servers and gateways send with status 200."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from uniedit_hf.calls.messages import PassingFailure


FORMAT = "the reply is not in the format of the API"


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
        message, usage = choice["message"] or {}, made.get("usage") or {}
        finish, refusal = choice.get("finish_reason"), message.get("refusal")
        if refusal is None and finish == "content_filter":
            refusal = "stopped by the content filter"
        return Completion(
            whole_text(_text(message.get("content"))),
            None if refusal is None else whole_text(str(refusal)),
            whole_text(str(made["model"])) if made.get("model") else None,
            finish,
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        found = error_in(made)
        raise (ErrorBody(*found) if found else PassingFailure(FORMAT)) from error


def whole_text(text: str) -> str:
    """The text with lone surrogates, which cannot be stored, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_of(body: str) -> tuple[str, str]:
    """Message and code of the error in a body; the body itself if there is no error in it."""
    try:
        error = json.loads(body)
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
    """The JSON of a body, without the lines that gateways put before it, such as `: processing`; events as one.

    Raises:
        PassingFailure: If the body is truncated, or is not JSON.
    """
    text = body.lstrip("\ufeff \t\r\n")
    try:
        if any(line.startswith("data:") for line in text.splitlines()):
            return _events(text)
        lines = text.split("\n")
        while lines and lines[0].strip()[:1] in ("", ":", "/", "#"):
            lines.pop(0)
        return json.loads("\n".join(lines))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PassingFailure(FORMAT) from error


def _events(text: str) -> dict:
    """Server-sent events as one completion.

    Raises:
        PassingFailure: If the last event is missing.
    """
    parts, whole, ended = [], {}, False
    for line in text.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            ended = True
        elif data:
            event = json.loads(data)
            whole |= {name: value for name, value in event.items() if name != "choices" and value is not None}
            ended = ended or str(event.get("type")).endswith(".completed")  # from an image API
            for choice in event.get("choices") or ():
                parts.append(_text((choice.get("delta") or choice.get("message") or {}).get("content")))
                ended = ended or choice.get("finish_reason") is not None
                whole["finish"] = choice.get("finish_reason") or whole.get("finish")
    if not ended:
        raise PassingFailure("the reply is cut")
    return whole | {"choices": [{"message": {"content": "".join(parts)}, "finish_reason": whole.get("finish")}]}


def _text(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
