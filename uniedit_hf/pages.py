"""HTML pages: reports that are one file each. `templates/page.html.j2` is the head, the colors in light and dark, and
tables that fit a phone; a page extends it in the folder `templates` of its package."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, name: str, **values: Any) -> str:
    """The page `name` in the folder `templates` of a package. Values are escaped.

    Raises:
        jinja2.UndefinedError: The page uses a value that is missing.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("uniedit_hf")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
