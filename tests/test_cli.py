"""The `diffpref` command: what it prints, what it exits with, and what it does not import."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import diffpref
from diffpref.cli import COMMANDS, main, report_errors

ROOT = Path(__file__).parent.parent
RUN = """
import json, runpy, sys
sys.argv = ["diffpref", *{arguments!r}]
status = "none"
try:
    runpy.run_module("diffpref", run_name="__main__")
except SystemExit as stop:
    status = stop.code
loaded = [name for name in ("torch", "tyro", "diffusers", "numpy", "yaml") if name in sys.modules]
print(json.dumps([status, loaded]))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [(["--help"], 0, "usage: diffpref COMMAND"), (["--version"], 0, diffpref.__version__), (["trian"], 2, "")],
)
def test_the_module_answers_without_heavy_imports(arguments: list[str], status: int, text: str) -> None:
    code = RUN.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    assert json.loads(last) == [status, []]
    assert text in "\n".join(printed)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert not printed.err
        for name, (_, text) in COMMANDS.items():
            assert f"  {name} " in printed.out and text in printed.out
    assert main([]) == 2 and "usage: diffpref" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == diffpref.__version__


@pytest.mark.parametrize(("given", "meant"), [("trian", "train"), ("quikstart", "quickstart"), ("dat", "data")])
def test_an_unknown_command_suggests_the_nearest(given: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given]) == 2
    printed = capsys.readouterr()
    assert not printed.out and f"no command {given!r}. Perhaps you meant {meant!r}." in printed.err


def test_an_unknown_command_that_resembles_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    printed = capsys.readouterr().err
    assert "no command 'xyzzy'." in printed and "Perhaps" not in printed and "usage:" in printed


@pytest.mark.parametrize("problem", [ValueError("rank must be above 0"), FileNotFoundError(2, "No such file", "x.png")])
def test_what_a_user_can_mend_is_one_line(problem: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: list[str]) -> int:
        raise problem

    assert report_errors(command, []) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err == f"diffpref: error: {problem}\n"


def test_our_own_bugs_keep_their_traceback() -> None:
    def command(arguments: list[str]) -> int:
        raise KeyError("an invariant")

    with pytest.raises(KeyError):
        report_errors(command, [])


def test_an_interrupt_is_no_error_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert report_errors(command, []) == 130
    assert capsys.readouterr().err == "diffpref: stopped.\n"


def test_a_command_gets_the_rest_of_the_line_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = importlib.import_module("diffpref.training.command")
    monkeypatch.setattr(module, "main", lambda arguments: seen.append(arguments) or 7)
    assert main(["train", "--rank", "3"]) == 7 and seen == [["--rank", "3"]]


def test_a_settings_error_of_train_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("learnig_rate: 1")
    assert main(["train", "--config", str(config)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"diffpref: error: {config}: unknown key 'learnig_rate'") and printed.count("\n") == 1


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_exists(name: str) -> None:
    assert callable(importlib.import_module(COMMANDS[name][0]).main)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"])
    except SystemExit as stop:  # tyro's way
        code = stop.code
    printed = capsys.readouterr().out
    assert not code and f"usage: diffpref {name}" in printed
    if name == "train":
        assert "--learning-rate" in printed and "--beta" in printed
