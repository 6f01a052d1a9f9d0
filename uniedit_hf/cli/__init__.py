"""The command line, `uniedit COMMAND [options]`.

A command is a file in this folder with a function `run`, whose annotations name the dataclasses of its options, and a
line in `COMMANDS`. This module picks the command and sets the exit code: 2 for an invalid command line, 1 for an error
that the command reports (one sentence each), 130 for Ctrl-C. Any other exception is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib import import_module

from uniedit_hf import __version__


# The words after `uniedit` -> what the command does. `dataset build` lives in dataset_build.py.
COMMANDS = {
    "quickstart": "Run the whole method once on a laptop: make data, tune a small model, look at its edits.",
    "edit": "Edit an image, or every image in a folder, by an instruction.",
    "ask": "Ask a question about an image, or about every image in a folder.",
    "generate": "Draw an image for a prompt, or one for every line of a file.",
    "synthesize": "Turn questions about images into verified intelligent edits.",
    "dataset build": "Convert a raw release to Parquet that load_dataset reads.",
    "dataset validate": "Check a built data set: schema, images, duplicates, categories, benchmarks.",
    "dataset tokens": "Precompute a Janus-Pro's image tokens and store them with a data set.",
    "dataset latents": "Precompute a BAGEL's image latents and features and store them with a data set.",
    "dataset publish": "Publish a built data set on the Hub: card, resumable upload, tag.",
    "train": "Tune a model on intelligent edits, or on a mix of data sets.",
    "grpo": "Tune a model by reinforcement learning, with rewards on what it draws and writes.",
    "evaluate": "Compare a tuned model with its base on a benchmark, with confidence intervals.",
    "demo": "Show a base and a tuned model side by side on a local page, or as a Space.",
    "doctor": "Print versions, devices, extras and whether the Hub answers, for a bug report.",
    "serve": "Serve a model over HTTP with OpenAI's routes: draw, edit, ask.",
    "convert": "Rewrite a checkpoint in the official layout or in that of transformers.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after `uniedit`; by default those of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: After `COMMAND --help` (0) or an invalid option (2), as in argparse.
    """
    _give_bars_a_width()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(COMMANDS))
        return 0
    group = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if group and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print(_overview(group))
        return 0
    if arguments[0] == "--version":
        print(f"uniedit_hf {__version__}")
        return 0
    command = next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)
    if command is None:
        return _complain(f"uniedit: {_unknown(arguments)}", 2)
    try:
        # Imported here: the parser takes a third of a second to import, and a command may take longer.
        from uniedit_hf.cli.parsing import CommandParser
        from uniedit_hf.files import disk_errors_name

        run = import_module(f"uniedit_hf.cli.{command.replace(' ', '_')}").run
        flags = arguments[len(command.split()) :]
        options = CommandParser(command, COMMANDS[command], run, show_inherited="--help_all" in flags).parse(flags)
        with disk_errors_name("A file"):
            run(*options)
    except (ValueError, OSError) as error:
        return _complain(f"uniedit {command}: {error}", 1)
    except KeyboardInterrupt:
        gc.freeze()  # otherwise Python collects garbage over all of torch before it exits, which takes seconds
        return _complain(f"uniedit {command}: stopped by Ctrl-C", 130)
    return 0


def _give_bars_a_width() -> None:
    """Lets progress bars assume 80 columns in a terminal that states none, as in some containers, where tqdm shows
    nothing at all. tqdm reads these variables when it is imported."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # not a terminal
        return
    if columns == 0:
        os.environ.setdefault("TQDM_NCOLS", "80")
        os.environ.setdefault("TQDM_NROWS", "24")


def _overview(commands: Collection[str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {COMMANDS[name]}" for name in commands]
    return "\n".join(
        [
            "usage: uniedit COMMAND [--config FILE] [options]",
            "",
            *lines,
            "",
            '"uniedit COMMAND --help" shows the options of a command, "uniedit --version" the version.',
        ]
    )


def _unknown(arguments: Sequence[str]) -> str:
    words = " ".join(arguments[:2] if any(name.startswith(f"{arguments[0]} ") for name in COMMANDS) else arguments[:1])
    nearest = get_close_matches(words, COMMANDS, n=1, cutoff=0.5)
    remedy = f'did you mean "uniedit {nearest[0]}"?' if nearest else '"uniedit --help" lists the commands.'
    return f'there is no command "{words}"; {remedy}'


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
