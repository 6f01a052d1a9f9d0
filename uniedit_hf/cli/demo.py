"""`uniedit demo`: a page that shows a base model and a tuned one side by side; or the same as a Space."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from uniedit_hf.cli.option_types import Port


QUICKSTART = Path("runs/quickstart")


@dataclass
class DemoOptions:
    base: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of the base model; the quickstart's by default", "metavar": "NAME"},
    )
    tuned: str | None = field(
        default=None,
        metadata={
            "help": "folder or Hub id of the tuned model; the quickstart's result by default",
            "metavar": "NAME",
        },
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0 lets the network in"})
    port: Port | None = field(default=None, metadata={"help": "port; by default the first free one from 7860"})
    deploy: str | None = field(
        default=None, metadata={"help": "publish the page as this Space instead", "metavar": "ME/SPACE"}
    )
    hardware: str = field(default="zero-a10g", metadata={"help": "hardware to request for the Space"})
    private: bool = field(default=False, metadata={"help": "whether a new Space is private"})


def run(options: DemoOptions) -> None:
    if options.deploy is not None:
        from uniedit_hf.demo.deploy import deploy

        if options.base is None or options.tuned is None:
            raise ValueError("A Space shows models on the Hub: give their ids with --base and --tuned.")
        address = deploy(
            options.deploy, options.base, options.tuned, hardware=options.hardware, private=options.private
        )
        print(f"The Space is at {address}.")
        return
    if find_spec("gradio") is None:
        raise ValueError('The demo needs gradio, which is not installed: pip install "uniedit_hf[demo]".')
    tuned = options.tuned or str(_tuned())
    base = options.base or str(_base())
    from uniedit_hf.demo.main import launch

    launch(base, tuned, host=options.host, port=options.port)


def _tuned() -> Path:
    """The quickstart's result."""
    folder = QUICKSTART / "model"
    if not (folder / "config.json").is_file():
        raise OSError(
            f'There is no tuned model at {folder}: run "uniedit quickstart" here first, or give one with --tuned.'
        )
    return folder


def _base() -> Path:
    """The model that the quickstart tuned; the small base if the quickstart has not been run."""
    from uniedit_hf.small_world.quickstart.tuning import base_folder

    report = QUICKSTART / "report.json"
    settings = json.loads(report.read_text())["settings"] if report.is_file() else {"base": "assets", "model": "bagel"}
    return base_folder(None if settings["base"] == "assets" else settings["base"], settings["model"])
