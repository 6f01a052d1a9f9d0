"""The page that shows a run, and the same as JSON. The page is one file: pictures and curve are inside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .showing import Example


NOTE = (
    "A 64-pixel world of one coloured shape: this page shows that the machinery works from end to end. "
    "It is no evidence about the 7B model."
)


def write_report(
    folder: Path,
    *,
    settings: dict[str, Any],
    summary: dict[str, Any],
    losses: Sequence[dict[str, float]],
    examples: Sequence[Example],
    seconds: dict[str, float],
) -> Path:
    """Writes `report.json` and `report.html` and returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "settings": settings,
        "data": summary,
        "losses": list(losses),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "examples": [example.instruction for example in examples],
        "note": NOTE,
    }
    (folder / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
    environment = Environment(
        loader=PackageLoader("uniedit_hf.quickstart"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        **facts,
        curve=loss_curve(losses),
        rows=[
            {"instruction": each.instruction} | {name: data_url(getattr(each, name)) for name in PICTURES}
            for each in examples
        ],
        pictures=PICTURES,
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


PICTURES = ("source", "base", "tuned", "target")


def data_url(image: Image.Image) -> str:
    """A picture as text that a page can hold."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curve(losses: Sequence[dict[str, float]]) -> str:
    """The losses over the steps as an SVG element."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "uniedit"
    figure, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot([each["step"] for each in losses], [each["loss"] for each in losses], color="#3b6fd4", linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("image loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
