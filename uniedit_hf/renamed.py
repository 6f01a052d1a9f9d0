"""Former names of options: passing one raises an error that gives the new name."""

from __future__ import annotations

import functools


def refuse_former_names(cls: type) -> type:
    """Class decorator: the constructor refuses the keys of `cls.FORMER_NAMES`, a dictionary from former to new names.

    Raises:
        ValueError: From the constructor, with the new name.
    """
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        for former in cls.FORMER_NAMES.keys() & kwargs.keys():
            raise ValueError(renamed(former, cls.FORMER_NAMES[former]))
        construct(self, *args, **kwargs)

    cls.__init__ = __init__
    return cls


def renamed(former: str, new: str, prefix: str = "") -> str:
    """The error message for a renamed option."""
    return f"{prefix}{former} is now called {prefix}{new}: use the new name."
