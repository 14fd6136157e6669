"""The command line as a whole: help that teaches, exit codes, JSON, and what it says where click is missing."""

import json
import os
import shlex
import subprocess
import sys

import pytest

import ladderkern
from ladderkern.cli import main

click = pytest.importorskip("click", reason="the command line needs it")
from click.testing import CliRunner  # noqa: E402

from ladderkern.cli.commands import commands  # noqa: E402


def _all_commands(command, words=()):
    """(words of the command line, click's command) of a group and of all below it."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _all_commands(below, (*words, name))


ALL = dict(_all_commands(commands))
RUNNER = CliRunner()


def shown(words, width=80):
    done = RUNNER.invoke(commands, [*words, "--help"], terminal_width=width)
    assert done.exit_code == 0
    return done.output


def test_the_commands_are_these():
    assert set(ALL) == {(), ("info",), ("demo",), ("bench",), ("predict",), ("prm",), ("prm", "report")}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_fits_a_terminal_and_says_what_each_option_does(words):
    text = shown(words)
    assert max(map(len, text.splitlines())) <= 80
    assert not [line for line in text.splitlines()[1:] if line.endswith("...")]  # a command whose help is cut off
    for option in ALL[words].params:
        assert isinstance(option, click.Argument) or option.help


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_of_the_help_can_be_called(words):
    lines = [line.strip() for line in shown(words).splitlines()]
    examples = [shlex.split(line)[3:] for line in lines if line.startswith("python -m ladderkern ")]
    assert examples
    for arguments in examples:
        command, name = commands, "ladderkern"
        while isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        if arguments == ["--help"]:
            continue
        command.make_context(name, arguments)  # parses, and raises UsageError where it cannot


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["info"], 0),
        (["prm", "report", "no-such-file.jsonl"], 1),
        ([], 2),
        (["nonsense"], 2),
        (["info", "--nonsense"], 2),
        (["prm"], 2),
        (["prm", "report"], 2),
        (["demo", "--part", "nonsense"], 2),
        (["predict", "--tp", "eight"], 2),
        (["bench", "nonsense"], 2),
        (["bench", "--dtype", "float16"], 2),
        (["bench", "--plot", "ratios.nonsense"], 1),
    ],
)
def test_exit_codes_and_where_it_is_said(arguments, code, capsys):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert bool(out) == (code == 0)
    assert bool(err) == (code != 0)
    assert "Traceback" not in err


def test_info_as_json_and_as_text(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ladderkern.info()
    assert main(["info"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"{name}  {value}" for name, value in ladderkern.info().items()]


def _python(arguments, **environment):
    command = [sys.executable, "-m", "ladderkern", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_without_click_it_says_in_one_line_what_to_install(tmp_path):
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click here', name='click')")
    done = _python(["info"], PYTHONPATH=os.pathsep.join((str(tmp_path), os.getcwd())))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "The commands of ladderkern need click: pip install click\n"


def test_the_process_ends_with_the_exit_code_and_knows_its_name():
    done = _python(["predict", "--tp", "x"])
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: python -m ladderkern predict ")
