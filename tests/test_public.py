"""The public names: documented, free of torch until used, and functions whatever was imported before."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffpref

PACKAGE = Path(diffpref.__file__).parent
COMMANDS = ("train", "label")
"""What `python -m` runs and Python calls."""


@pytest.mark.parametrize("name", diffpref.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(diffpref, name)
    assert inspect.getdoc(value) and name in dir(diffpref)
    assert inspect.getdoc(value) != inspect.getdoc(object)
    assert callable(value)


def test_type_checkers_and_python_know_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown: dict[str, set[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        shown[node.module.removeprefix("diffpref.")] = {alias.name for alias in node.names}
    homes = {home: set(names) for home, names in diffpref._HOMES.items()}
    # The package that can be called: type checkers see the function behind it.
    homes["label.engine"] = homes.pop("label")
    assert shown == homes
    assert sorted(diffpref.__all__) == sorted(name for names in shown.values() for name in names)
    assert (PACKAGE / "py.typed").is_file()


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = diffpref.trian


def test_a_public_name_is_called_whatever_was_imported_before() -> None:
    """No import of a submodule may put a module that cannot be called in the function's place."""
    for home in ("training.loop", "training.command", "label.engine", "label.command", "cli"):
        importlib.import_module(f"diffpref.{home}")
    with pytest.raises(ImportError, match="from diffpref import train"):
        importlib.import_module("diffpref.train")
    assert inspect.isfunction(inspect.unwrap(diffpref.train))
    for given in (diffpref.label, importlib.import_module("diffpref.label")):
        with pytest.raises((AttributeError, TypeError)):
            given(None)
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert modules & set(diffpref.__all__) == set(COMMANDS), "a public name has the name of a module"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_these_names_run(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"diffpref.{name}", "--config", "nothing.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 1 and done.stderr.startswith("diffpref: error: nothing.yaml"), done.stderr


def test_the_version_is_written_once() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text and 'path = "diffpref/__init__.py"' in text
