"""The command line: what it shows, and that every mistake is one sentence and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, strategies as st

from uniedit_hf import cli
from uniedit_hf.cli.parsing import CommandParser


UNIEDIT = Path(sys.executable).with_name("uniedit")
FIXTURE = Path(__file__).parent / "fixtures" / "bagel_tiny"


# As TrainingArguments: a dataclass of another package.
Inherited = make_dataclass("Inherited", [("inherited", int, field(default=1, metadata={"help": "not ours"}))])
Inherited.__module__ = "elsewhere"


@dataclass
class Options(Inherited):
    name: str = field(default="a", metadata={"help": "some text"})
    rate: float = field(default=0.5, metadata={"help": "a number"})
    steps: int | None = field(default=None, metadata={"help": "a count or none"})
    flip: bool = field(default=True, metadata={"help": "yes or no"})
    kind: Literal["red", "green"] = field(default="red", metadata={"help": "one of two"})
    sizes: list[int] = field(default_factory=lambda: [1], metadata={"help": "some counts"})
    extras: dict | str | None = field(default=None, metadata={"help": "settings"})


@dataclass
class Required:
    output_dir: str = field(metadata={"help": "a folder"})


def run(options: Options) -> None: ...


def run_two(required: Required, options: Options) -> None: ...


def parse(*flags, run=run, show_inherited=False):
    return CommandParser("paint", "Paint a picture.", run, show_inherited).parse(flags)


def complaint(capsys, *flags, run=run) -> str:
    """The one sentence that a wrong command line gives."""
    with pytest.raises(SystemExit) as stopped:
        parse(*flags, run=run)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("uniedit paint: ")
    return err.removeprefix("uniedit paint: ").strip()


# ---------------------------------------------------------------------------------------------------------------------
# Options from flags and files


@given(
    options=st.builds(
        Options,
        inherited=st.integers(),
        name=st.text(st.characters(exclude_categories=["Cs"])),
        rate=st.floats(allow_nan=False),
        steps=st.none() | st.integers(),
        flip=st.booleans(),
        kind=st.sampled_from(["red", "green"]),
        sizes=st.lists(st.integers(), min_size=1),
        extras=st.just(None),
    ),
    in_file=st.sets(st.sampled_from(["inherited", "name", "rate", "steps", "flip", "kind", "sizes"])),
)
def test_flags_and_files_mean_the_same(tmp_path_factory, options, in_file):
    values = asdict(options)
    path = tmp_path_factory.mktemp("options") / "options.yaml"
    path.write_text(yaml.safe_dump({key: values[key] for key in in_file} or {"env": {}}))
    flags = ["--config", str(path)]
    for key in set(values) - in_file - {"extras"}:
        flags += ["--sizes", *map(str, values[key])] if key == "sizes" else [f"--{key}={values[key]}"]
    assert parse(*flags) == (options,)


def test_a_flag_wins_over_the_file(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("name: file\nrate: 1e-4\nextras: {a: 1}\noutput_dir: there\n")
    required, options = parse("--name", "flag", f"--config={path}", run=run_two)
    assert required == Required("there")
    assert options == Options(name="flag", rate=1e-4, extras={"a": 1})


def test_environment_of_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("UNIEDIT_TEST", raising=False)
    path = tmp_path / "options.yaml"
    path.write_text("env: {UNIEDIT_TEST: 3}")
    parse("--config", str(path))
    assert os.environ.pop("UNIEDIT_TEST") == "3"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--nmae", "x"], "there is no option --nmae; did you mean --name?"),
        (["--nam", "x"], "there is no option --nam; did you mean --name?"),
        (["--zzz=1"], 'there is no option --zzz; "uniedit paint --help" lists the options.'),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--kind", "blue"], "argument --kind: invalid choice: 'blue' (choose from "),
        (["--name"], "argument --name: expected one argument"),
        (["picture.png"], "did not expect 'picture.png': every value follows an option such as --config."),
        (["--config"], "--config needs the path of a YAML file after it."),
        (["--config", "--name", "x"], "--config needs the path of a YAML file after it."),
        (["--config", "a.yaml", "--config=b.yaml"], "--config names one file, but was given twice."),
        (["--config", "none.yaml"], "cannot read the options in none.yaml: No such file or directory."),
    ],
)
def test_wrong_flags(capsys, flags, sentence):
    assert complaint(capsys, *flags).startswith(sentence)


def test_lacking_option(capsys):
    assert complaint(capsys, run=run_two) == "the following arguments are required: --output_dir/--output-dir"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nmae: x", "there is no option nmae; did you mean name?"),
        ("output-dir: x", 'there is no option output-dir; "uniedit paint --help" lists the options.'),
        ("help: true", 'there is no option help; "uniedit paint --help" lists the options.'),
        ("config: other.yaml", 'there is no option config; "uniedit paint --help" lists the options.'),
        ("1: x", 'there is no option 1; "uniedit paint --help" lists the options.'),
        ("steps: many", "steps takes int, found 'many'."),
        ("steps: [1, 2]", "steps takes int, found [1, 2]."),
        ("name: {a: 1}", "name takes text, found {'a': 1}."),
        ("name:", "name takes text, found None."),
        ("sizes: 3", "sizes takes a list, found 3."),
        ("sizes: null", "sizes takes a list, found None."),
        ("sizes: [1, x]", "sizes takes int, found 'x'."),
        ("flip: perhaps", "flip takes true|false, found 'perhaps'."),
        ("kind: blue", "kind takes red|green, found 'blue'."),
    ],
)
def test_wrong_values_in_a_file(capsys, tmp_path, text, sentence):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert complaint(capsys, "--config", str(path)) == f"{path}: {sentence}"


@pytest.mark.parametrize("text", ["- a", "just words", "env: 3"])
def test_files_without_options(capsys, tmp_path, text):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert complaint(capsys, "--config", str(path)).startswith(f"{path} must contain one option per line")


def test_an_empty_file(capsys, tmp_path):
    path = tmp_path / "options.yaml"
    path.touch()
    assert complaint(capsys, "--config", str(path)).startswith(f"{path} is empty: write one option per line")


@pytest.mark.parametrize("content", [b"name: [1", b"name: a: b", b"\xff\xfe\x00", b"name: '\x00'"])
def test_files_that_are_not_yaml(capsys, tmp_path, content):
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    assert complaint(capsys, "--config", str(path)).startswith(f"{path} is not valid YAML: ")


def test_a_folder_instead_of_a_file(capsys, tmp_path):
    assert complaint(capsys, "--config", str(tmp_path)) == f"cannot read the options in {tmp_path}: Is a directory."


# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_help_shows_our_own_options(capsys):
    for flag, shows_inherited in [("--help", False), ("--help_all", True)]:
        with pytest.raises(SystemExit) as stopped:
            parse(flag, show_inherited=shows_inherited)
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert "--name text" in out and "some text (default: a)" in out and "--config FILE" in out
        assert ("--inherited" in out) == shows_inherited
        assert "--no_flip" not in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(capsys, command):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command.split(), flag])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: uniedit {command} ")
        longest = {"train": 120, "grpo": 160, "evaluate": 51}.get(command, 40)
        assert flag == "--help_all" or out.count("\n") <= longest, "--help fits a screen; train fits three, grpo four"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_lists_the_commands(capsys, words):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out and summary in out for command, summary in cli.COMMANDS.items())
    assert all(len(line) < 120 for line in out.splitlines())


@pytest.mark.parametrize("words", [["dataset"], ["dataset", "--help"], ["dataset", "-h"]])
def test_a_group_lists_its_commands(capsys, words):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all((f"  {command} " in out) == command.startswith("dataset ") for command in cli.COMMANDS)


def test_overview_is_quick():
    code = (
        "import sys; from uniedit_hf import cli; cli.main([]);"
        "print([name for name in ('torch', 'trl', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("uniedit_hf 0.")


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["quickstrat"], 'there is no command "quickstrat"; did you mean "uniedit quickstart"?'),
        (["zzz", "--x"], 'there is no command "zzz"; "uniedit --help" lists the commands.'),
    ],
)
def test_unknown_command(capsys, words, sentence):
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", f"uniedit: {sentence}\n")


@pytest.fixture
def paint_wall(tmp_path, monkeypatch):
    """A command `paint wall`, added the way every command is: a file and a line."""
    (tmp_path / "paint_wall.py").write_text(
        """
from dataclasses import dataclass, field


@dataclass
class PaintOptions:
    mistake: str = field(default="", metadata={"help": "what goes wrong"})


def run(options: PaintOptions) -> None:
    if options.mistake == "file":
        open("no such file")
    if options.mistake:
        raise {"value": ValueError, "key": KeyError, "stop": KeyboardInterrupt}[options.mistake]("The wall is wet.")
    print("painted")
"""
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setitem(cli.COMMANDS, "paint wall", "Paint a wall.")
    yield
    sys.modules.pop("uniedit_hf.cli.paint_wall", None)


def test_a_command_of_two_words(capsys, paint_wall):
    assert cli.main(["paint", "wall"]) == 0
    assert capsys.readouterr() == ("painted\n", "")
    assert cli.main(["paint", "wlal"]) == 2
    assert capsys.readouterr().err == 'uniedit: there is no command "paint wlal"; did you mean "uniedit paint wall"?\n'
    assert cli.main(["paint"]) == 0
    assert "  paint wall  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mistake", "code", "sentence"),
    [
        ("value", 1, "The wall is wet."),
        ("file", 1, "[Errno 2] No such file or directory: 'no such file'"),
        ("stop", 130, "stopped by Ctrl-C"),
    ],
)
def test_mistakes_of_a_command(capsys, paint_wall, mistake, code, sentence):
    assert cli.main(["paint", "wall", "--mistake", mistake]) == code
    assert capsys.readouterr() == ("", f"uniedit paint wall: {sentence}\n")


def test_other_errors_keep_their_traceback(paint_wall):
    with pytest.raises(KeyError):
        cli.main(["paint", "wall", "--mistake", "key"])


def test_convert(capsys, tmp_path):
    options = ["convert", "--input_dir", str(FIXTURE), "--output_dir", str(tmp_path / "ours")]
    assert cli.main([*options, "--to", "transformers"]) == 0
    assert "in the transformers layout" in capsys.readouterr().out
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "ours").iterdir()}
    assert cli.main([*options, "--to", "official"]) == 1
    assert capsys.readouterr().err.startswith(f"uniedit convert: output_dir {tmp_path / 'ours'} is not empty")


BAR = """
from uniedit_hf.cli import main
main(["--version"])
from tqdm.auto import tqdm
list(tqdm(range(3), desc="drawing"))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_progress_is_readable_in_a_terminal_without_a_width():
    import pty

    ours, theirs = pty.openpty()  # 0 columns, 0 rows
    subprocess.run([sys.executable, "-c", BAR], stderr=theirs, stdout=subprocess.DEVNULL, check=True, timeout=100)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "drawing" in shown and "3/3" in shown


def test_the_console_script():
    result = subprocess.run([UNIEDIT, "convert", "--input_dir"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "uniedit convert: argument --input_dir/--input-dir: expected one argument\n"
