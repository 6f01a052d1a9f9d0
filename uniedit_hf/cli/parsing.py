"""One flat parser of dataclasses per command, on top of `trl.TrlParser`: options come from flags and from a YAML file,
a flag overrides the file, and every error in either is reported in one sentence.
"""

from __future__ import annotations

import inspect
import os
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

from uniedit_hf.cli.option_types import check_options
from uniedit_hf.renamed import renamed


class OptionFormatter(ArgumentDefaultsHelpFormatter):
    """Shows an option once, with the type of its value: `--steps int`. Required options are marked."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _format_action_invocation(self, action: Action) -> str:
        name = ", ".join(option for option in action.option_strings if "-" not in option.lstrip("-"))
        if action.nargs == 0:
            return name
        kind = action.metavar or _kind(action)
        return f"{name} {kind} ..." if action.nargs == "+" else f"{name} {kind}"

    def _get_help_string(self, action: Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default is None else super()._get_help_string(action)


class CommandParser(TrlParser):
    """The options of one command.

    Args:
        command: The words after `uniedit`.
        summary: A line about the command.
        run: The function to call; the annotations of its parameters are the dataclasses of the options.
        show_inherited: Whether the help also shows options declared outside the package of `run`.
    """

    def __init__(self, command: str, summary: str, run: Callable[..., None], show_inherited: bool = False):
        hints = get_type_hints(run)
        hints.pop("return", None)
        super().__init__(
            list(hints.values()),
            prog=f"uniedit {command}",
            usage=f"uniedit {command} [--config FILE] [options]",
            description=summary,
            formatter_class=OptionFormatter,
            allow_abbrev=False,
        )
        self.former_names = {
            former: new for kind in hints.values() for former, new in getattr(kind, "FORMER_NAMES", {}).items()
        }
        self.type_hints = {name: hint for kind in hints.values() for name, hint in get_type_hints(kind).items()}
        self.option_of = {action.dest: action for action in self._actions if action.nargs != 0}
        package = run.__module__.partition(".")[0]
        own = {
            name
            for kind in hints.values()
            for base in kind.__mro__
            if base.__module__.partition(".")[0] == package
            for name in inspect.get_annotations(base)
        }
        shown = {name: words for kind in hints.values() for name, words in getattr(kind, "SHOWN_OPTIONS", {}).items()}
        for action in self._actions:
            action.help = shown.get(action.dest, action.help)
            # `--no_x` does the same as `--x false`, which the help shows.
            if action.dest != "help" and (
                action.nargs == 0 or not (show_inherited or action.dest in own | shown.keys())
            ):
                action.help = SUPPRESS
        self.add_argument("--config", metavar="FILE", type=str, default=SUPPRESS, help="a YAML file of options")
        self.add_argument("--help_all", action="help", help="also show the options inherited from transformers")

    def parse(self, flags: Sequence[str]) -> tuple[Any, ...]:
        """One dataclass instance for each parameter of `run`.

        Raises:
            SystemExit: With code 2 and one sentence on stderr if an option is unknown, missing or has an invalid
                value, or if the file of options cannot be read; with code 0 after `--help`.
            ValueError: If a dataclass rejects its values.
        """
        flags = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
        if "--config" in flags:
            position = flags.index("--config")
            path = next(iter(flags[position + 1 :]), "--")
            if path.startswith("--"):
                self.error("--config needs the path of a YAML file after it.")
            del flags[position : position + 2]
            if "--config" in flags:
                self.error("--config names one file, but was given twice.")
            self._take_config(path)
        known = {option for action in self._actions for option in action.option_strings}
        for flag in flags:
            if flag.startswith("--") and flag.partition("=")[0] not in known:
                self.error(self._unknown(flag.partition("=")[0].removeprefix("--"), "--"))
        *options, rest = self.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
        if rest:
            self.error(f"did not expect {rest[0]!r}: every value follows an option such as --config.")
        for each in options:
            check_options(each)
        return tuple(options)

    def error(self, message: str):
        """One sentence and exit code 2, where argparse would print the usage first."""
        self.exit(2, f"{self.prog}: {message}\n")

    def _take_config(self, path: str) -> None:
        config = self._read(path)
        # As in TrlParser: `env` sets environment variables.
        os.environ.update({name: str(value) for name, value in config.pop("env", {}).items()})
        for key in config:
            if key not in self.option_of:
                self.error(f"{path}: {self._unknown(str(key))}")
        self.set_defaults_with_config(
            **{key: self._checked(path, self.option_of[key], value) for key, value in config.items()}
        )

    def _read(self, path: str) -> dict:
        try:
            with open(path, encoding="utf-8") as file:
                config = yaml.safe_load(file)
        except OSError as error:
            self.error(f"cannot read the options in {path}: {error.strerror}.")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"{path} is not valid YAML: {' '.join(str(error).split())}.")
        if config is None:
            self.error(f"{path} is empty: write one option per line, such as `seed: 0`.")
        if not isinstance(config, dict) or not isinstance(config.get("env", {}), dict):
            self.error(f"{path} must contain one option per line, such as `seed: 0`, with `env` a mapping of its own.")
        return config

    def _checked(self, path: str, option: Action, value: Any) -> Any:
        """A value from the file, converted and checked like the value of a flag."""
        hint = self.type_hints[option.dest]
        takes = {get_origin(each) or each for each in (hint, *get_args(hint))}
        structured = value is None or isinstance(value, dict) or (isinstance(value, list) and option.nargs != "+")
        if structured and type(value) in takes:
            return value
        if structured or isinstance(value, list) != (option.nargs == "+"):
            kind = "a list" if option.nargs == "+" else _kind(option)
            self.error(f"{path}: {option.dest} takes {kind}, found {value!r}.")
        values = [self._converted(path, option, each) for each in (value if isinstance(value, list) else [value])]
        return values if option.nargs == "+" else values[0]

    def _converted(self, path: str, option: Action, value: Any) -> Any:
        try:
            converted = option.type(str(value))
        except (ValueError, TypeError, ArgumentTypeError):
            self.error(f"{path}: {option.dest} takes {_kind(option)}, found {value!r}.")
        if option.choices is not None and converted not in option.choices:
            self.error(f"{path}: {option.dest} takes {_kind(option)}, found {value!r}.")
        return converted

    def _unknown(self, name: str, prefix: str = "") -> str:
        spelled = name.replace("-", "_")
        if spelled in self.former_names:
            return renamed(spelled, self.former_names[spelled], prefix)
        nearest = get_close_matches(spelled, self.option_of, n=1)
        remedy = f"did you mean {prefix}{nearest[0]}?" if nearest else f'"{self.prog} --help" lists the options.'
        return f"there is no option {prefix}{name}; {remedy}"


def _kind(option: Action) -> str:
    """The type of an option's value, for messages."""
    if option.choices is not None:
        return "|".join(map(str, option.choices))
    name = option.type.__name__
    return {"string_to_bool": "true|false", "str": "text"}.get(name, name)
