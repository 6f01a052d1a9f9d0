"""Prints what setup.cfg asks for, without the upper bounds: the newest releases, which `make upstream` tests."""

import sys
from configparser import ConfigParser
from pathlib import Path


# As `make install` takes them.
EXTRAS = ("quickstart", "demo", "serving", "synthesis", "datatrove", "ocr", "dev")


def without_upper_bound(requirement: str) -> str:
    """`"gradio>=6.31,<7"` -> `"gradio>=6.31"`."""
    return ",".join(part for part in requirement.split(",") if not part.strip().startswith("<"))


def requirements(setup: Path) -> list[str]:
    """All of the package and of `EXTRAS`, in the order of setup.cfg."""
    config = ConfigParser()
    config.read(setup, encoding="utf-8")
    sections = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in EXTRAS)]
    return [without_upper_bound(line) for section in sections for line in section.split("\n") if line.strip()]


if __name__ == "__main__":
    sys.stdout.write("\n".join(dict.fromkeys(requirements(Path(__file__).parents[1] / "setup.cfg"))) + "\n")
