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
"""Files that `python -m` runs, with the names of public functions."""


@pytest.mark.parametrize("name", diffpref.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(diffpref, name)
    assert inspect.getdoc(value) and name in dir(diffpref)
    assert inspect.getdoc(value) != inspect.getdoc(object)
    assert not inspect.ismodule(value)


def test_type_checkers_and_python_know_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown: dict[str, set[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        shown[node.module.removeprefix("diffpref.")] = {alias.name for alias in node.names}
    assert shown == {home: set(names) for home, names in diffpref._HOMES.items()}
    assert sorted(diffpref.__all__) == sorted(name for names in shown.values() for name in names)
    assert (PACKAGE / "py.typed").is_file()


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = diffpref.trian


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_stays_a_function(name: str) -> None:
    """No import of a submodule may put a module in the function's place."""
    for home in ("training.loop", "training.command", "labelling.engine", "labelling.command", "cli"):
        importlib.import_module(f"diffpref.{home}")
    with pytest.raises(ImportError, match=f"from diffpref import {name}"):
        importlib.import_module(f"diffpref.{name}")
    assert inspect.isfunction(inspect.unwrap(getattr(diffpref, name)))
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
