"""Further arguments of a call, as the settings name them."""

from __future__ import annotations

from collections.abc import Collection

from uniedit_hf.synthesis.calls.messages import BackendError


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
