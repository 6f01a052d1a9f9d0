"""Types of options that `CommandParser` checks before a command runs: `steps: Count`, `output_dir: OutputDir`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Bounds:
    """The range of a number.

    Args:
        least: The smallest number.
        most: The largest number.
        above: Whether `least` itself is too small.
    """

    least: int
    most: int | None = None
    above: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises: ValueError: The number is outside."""
        low = value > self.least if self.above else value >= self.least
        if not low or (self.most is not None and value > self.most):
            raise ValueError(f"{name} is {value}: use {self}.")

    def __str__(self) -> str:
        if self.most is not None:
            return f"a number from {self.least} to {self.most}"
        return f"a number above {self.least}" if self.above else f"{self.least} or more"


@dataclass(frozen=True)
class Writable:
    """A place that can be written.

    Args:
        file: Whether the place is a file, or a folder that exists; otherwise a folder.
    """

    file: bool = False

    def check(self, name: str, value: str) -> None:
        """Raises: OSError: The place cannot be written."""
        in_folder = self.file and not Path(value).is_dir()
        check_writable(Path(value).parent if in_folder else value, f"{name} {value}")


Count = Annotated[int, Bounds(1)]
Seed = Annotated[int, Bounds(0)]
Seconds = Annotated[float, Bounds(0, above=True)]
Probability = Annotated[float, Bounds(0, 1)]
Port = Annotated[int, Bounds(1, 2**16 - 1)]
OutputDir = Annotated[str, Writable()]
OutputFile = Annotated[str, Writable(file=True)]


def check_options(options: Any) -> None:
    """Checks the fields of a dataclass that have one of these types; `None` is always allowed.

    Raises:
        ValueError: A number is out of its bounds.
        OSError: A file or folder cannot be written.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name, None)
        for check in _checks_in(hint):
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    check.check(name, each)


def check_writable(folder: str | Path, name: str) -> None:
    """Tries whether files can be made in a folder, or in the nearest one above that exists. Nothing stays.

    Raises:
        OSError: They cannot; the message begins with `name`.
    """
    place = Path(folder).absolute()
    nearest = next((each for each in (place, *place.parents) if each.exists()), Path(place.anchor))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = "is not a folder" if nearest.is_file() else f"cannot be written ({error.strerror})"
        raise OSError(f"{name}: {nearest} {reason}. Choose another place.") from error


def _checks_in(hint: Any) -> list[Bounds | Writable]:
    own = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Bounds | Writable)]
    return own + [check for inner in get_args(hint) for check in _checks_in(inner)]
