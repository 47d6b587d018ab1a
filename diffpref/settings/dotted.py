"""A user's own function by its address: `module:function`, or `path/to/file.py:function`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

FORMS = '"module:function" or "path/to/file.py:function"'


def is_address(name: str) -> bool:
    """Whether the text has the form of an address."""
    return all(name.rpartition(":")[::2])


def load_callable(kind: str, address: str) -> Callable[..., Any]:
    """The function at an address.

    Args:
        kind: what it is for, like "reward"; error messages begin with it.

    Raises:
        ValueError: no such file, a module that cannot be imported, or nothing there that can be called.
    """
    if not is_address(address):
        raise ValueError(f"{kind} {address!r} must have the form {FORMS}.")
    where, _, attribute = address.rpartition(":")
    called = f"{kind} {address!r}"
    module = _from_file(called, Path(where).expanduser()) if where.endswith(".py") else _from_module(called, where)
    if not hasattr(module, attribute):
        raise ValueError(f"{called}: {where} has no {attribute!r}; name a function that it defines.")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(f"{called}: {attribute} is {type(function).__name__} and cannot be called.")
    return function


def _from_module(called: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as problem:
        raise ValueError(
            f"{called}: module {module} cannot be imported ({type(problem).__name__}: {problem}); "
            'install it, or name its file as "path/to/file.py:function".'
        ) from problem


def _from_file(called: str, path: Path) -> ModuleType:
    """The file as a module that its own classes can be pickled from; read once, whatever it is called by."""
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{called}: there is no file {path}; the path starts from the working directory.")
    module_name = f"diffpref_user_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[module_name]
        raise ValueError(
            f"{called}: {path} cannot be imported ({type(problem).__name__}: {problem}); repair it first."
        ) from problem
    return module
