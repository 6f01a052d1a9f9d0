"""Classifies failed calls: temporary (retry), caused by the request, a refusal, or a reason to stop the run until a
person intervenes. Also removes keys from messages.
"""

from __future__ import annotations

import os
import re

from uniedit_hf.calls.chat_bodies import ErrorBody
from uniedit_hf.calls.messages import BackendError, PassingFailure, Reply, RowFailure


LONGEST_MESSAGE = 300
PASSING = (408, 409, 425, 429, 498)
# Messages of a service that refuses the content of a request.
REFUSED = re.compile(
    r"moderation_blocked|content_?policy|content_?filter|content management policy|responsibleaipolicy|safety system|"
    r"content filtering|data_inspection_failed|sensitive content|invalid_prompt",
    re.IGNORECASE,
)
# ... whose account has no credit.
UNPAID = re.compile(
    r"insufficient_quota|insufficient_balance|billing|exceeded your current quota|credit balance|out of credit|"
    r"not enough credit|available credits|insufficient.{0,10}(?:balance|funds|credit)|balance.{0,20}insufficient|"
    r"spend(?:ing)? limit|account.{0,20}(?:inactive|suspended|arrears)|arrearage|payment|欠费|余额不足",
    re.IGNORECASE,
)
# ... that does not accept one of our parameters.
PARAMETER = re.compile(
    r"unsupported[_ ](?:parameter|value)|(?:is|are) not supported|not supported with this|unknown[_ ]parameter|"
    r"unrecognized (?:request argument|key)|unknown name|is unavailable now|max_(?:completion_)?tokens is too large|"
    r"extra (?:inputs|fields)|unexpected keyword",
    re.IGNORECASE,
)
# ... that has no such model.
NO_MODEL = re.compile(
    r"model_not_found|model_not_supported|invalid model name|model \S+ (?:does not exist|was not found|is not found)",
    re.IGNORECASE,
)


def key_for(who: str, variable: str | None) -> str:
    """A key from its environment variable, "" if none is needed.

    Args:
        who: The service, as the beginning of a sentence: "The judge".

    Raises:
        BackendError: If the variable is not set.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise BackendError(f"{who} takes its key from the environment variable {variable}, which is empty: set it.")
    return key


def is_refusal(status: int, message: str, code: str = "") -> bool:
    """Whether a status refuses the content of a request, which counts as a reply."""
    return status in (400, 403, 422) and REFUSED.search(f"{code} {message}") is not None


def sorted_failure(who: str, model: str, status: int, message: str, wait: str, key: str, code: str = "") -> Exception:
    """The exception for a failed status: temporary, of this request, or of every call.

    Args:
        who: The service, as the beginning of a sentence: "The judge".
        model: The requested model.
        status: HTTP status of the reply.
        message: The server's message.
        wait: The header Retry-After.
        key: The key, to be removed from the message.
        code: Code of the error in the reply's body.
    """
    message, said = without_key(message, key), f"{code} {message}"
    again = "then run the same command again: what has been answered is kept"
    if status == 402 or status in (400, 403, 412, 429) and UNPAID.search(said):
        return BackendError(
            f"{who} has no credit left (HTTP {status}: {message}): add credit to the account, {again}."
        )
    if status in (401, 403):
        reason = f": {message}" if message else ""
        return BackendError(
            f"{who} refuses the key (HTTP {status}{reason}): check the environment variable, and what its account may "
            "use."
        )
    if status in (404, 405, 410) or status == 400 and NO_MODEL.search(said):
        return BackendError(
            f"{who} knows no model {model!r} or has another address (HTTP {status}: {message}): check model and "
            "base_url."
        )
    if status in (400, 422) and re.search("organization must be verified", said, re.IGNORECASE):
        return BackendError(f"{who} does not open this model to the account (HTTP {status}: {message}), {again}.")
    if 300 <= status < 400:
        return BackendError(
            f"{who} sends calls to another address (HTTP {status}), which are not followed with a key: write that "
            "address into base_url."
        )
    if status in PASSING or status >= 500:
        seconds = float(wait) if wait.replace(".", "", 1).isdecimal() else 0.0
        return PassingFailure(f"HTTP {status}: {message}", seconds)
    if status in (400, 422) and PARAMETER.search(said):
        return BackendError(
            f"{who} does not take a parameter of the call (HTTP {status}: {message}): change the arguments of the "
            f"call, {again}."
        )
    return RowFailure(f"HTTP {status}: {message}")


def refusal_in_body(who: str, model: str, error: ErrorBody, key: str) -> Reply:
    """The refusal in a body with status 200 that contains an error, as some gateways send it.

    Raises:
        Exception: For other errors, see `failure_in_body`.
    """
    if is_refusal(400, error.said, error.code):
        return Reply(model, refusal=without_key(error.said, key))
    raise failure_in_body(who, model, error, key) from error


def failure_in_body(who: str, model: str, error: ErrorBody, key: str) -> Exception:
    """The exception for an error that came with status 200: by its code if that is a status, else by its message."""
    said = f"{error.code} {error.said}"
    if error.code.isdecimal() and 400 <= int(error.code) < 600:
        status = int(error.code)
    else:
        status = 400 if UNPAID.search(said) or PARAMETER.search(said) else 500
    if status >= 500 or status in PASSING and not UNPAID.search(said):
        return error
    return sorted_failure(who, model, status, error.said, "", key, error.code)


def transport_failure(error: Exception) -> PassingFailure:
    """The failure of a call that got no reply, from the exception of an HTTP client (httpx, httpx2)."""
    names = [kind.__name__ for kind in type(error).__mro__]
    connected = not {"ConnectError", "ConnectTimeout"} & set(names)
    if connected and "TimeoutException" in names:
        return PassingFailure("no reply in time", reached=False)
    what = "the connection broke" if connected else "no connection"
    return PassingFailure(f"{what} ({names[0]})", reached=False, connected=connected)


def html_failure(who: str, address: str, status: int, answered: bool) -> Exception:
    """The exception for an HTML page instead of JSON: from a gateway, or from a wrong address."""
    if answered:
        return PassingFailure(f"HTML with HTTP {status}")
    return BackendError(
        f"{who} at {address} answers with HTML (HTTP {status}), expected JSON: check base_url, which ends in /v1 for "
        "most servers."
    )


def is_html(body: str) -> bool:
    return body.lstrip()[:1] == "<"


def without_key(text: str, key: str) -> str:
    """The text on one line, truncated, without the key in case a server repeats it."""
    text = " ".join(text.split())
    return (text.replace(key, "***") if key else text)[:LONGEST_MESSAGE]
