"""What backends share: arguments of a call, keys, and what an HTTP status means."""

from __future__ import annotations

import os
from collections.abc import Collection

from uniedit_hf.calls.messages import BackendError, PassingFailure, RowFailure


LONGEST_MESSAGE = 300


def check_arguments(name: str, arguments: Collection[str], takes: Collection[str], ours: Collection[str]) -> None:
    """Looks at them before the first call is made.

    Args:
        name: Of the backend.
        arguments: Names in the settings.
        takes: Names that the call takes.
        ours: Those of them that are given by us.

    Raises:
        BackendError: The call has no such argument, or it is one of ours.
    """
    for argument in arguments:
        if argument in ours:
            raise BackendError(
                f"The backend {name}: {argument!r} is given by every request itself; leave it out of arguments."
            )
        if argument not in takes:
            raise BackendError(
                f"The backend {name} takes no {argument!r} among its arguments; known are "
                f"{', '.join(sorted(set(takes) - set(ours)))}."
            )


def key_for(name: str, variable: str | None) -> str:
    """The key of a backend from its environment variable, "" where none is needed.

    Raises:
        BackendError: The variable is not set.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise BackendError(
            f"The backend {name} takes its key from the environment variable {variable}, which is empty."
        )
    return key


def sorted_failure(name: str, model: str, status: int, message: str, wait: str, key: str) -> Exception:
    """The exception for a status that is no success: to be tried again, of this row, or of every call.

    Args:
        name: Of the backend.
        model: That was asked for.
        status: Of the HTTP reply.
        message: What the server says.
        wait: The header Retry-After.
        key: To be taken out of the message.
    """
    message = without_key(message, key)
    if status in (401, 403):
        return BackendError(f"The backend {name} refuses the key (HTTP {status}): check the environment variable.")
    if status == 404:
        return BackendError(
            f"The backend {name} knows no model {model!r} or has another address (HTTP 404: {message}): check "
            "model and base_url."
        )
    if status in (408, 409, 425, 429) or status >= 500:
        seconds = float(wait) if wait.replace(".", "", 1).isdecimal() else 0.0
        return PassingFailure(f"HTTP {status}: {message}", seconds)
    return RowFailure(f"HTTP {status}: {message}")


def without_key(text: str, key: str) -> str:
    """The text on one line, cut short, without the key, should a server repeat it."""
    text = " ".join(text.split())
    return (text.replace(key, "***") if key else text)[:LONGEST_MESSAGE]
