"""YAML values as the typed fields of frozen dataclasses; what does not fit is named, with the nearest valid key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from diffpref.settings import bounds

T = TypeVar("T")


def convert(value: Any, hint: Any) -> Any:
    """The YAML value as the field's type; raises TypeError, whose text is the rule, where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        converted = convert(value, arguments[0])
        if not bounds.holds(converted, hint.__metadata__):
            raise TypeError(bounds.rule(hint.__metadata__))
        return converted
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False and "no" in arguments else value
        if value not in arguments:
            raise TypeError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        try:
            return tuple(convert(item, arguments[0]) for item in value)
        except TypeError as rule:
            raise TypeError(f"a list of {rule}") from None
    if hint is Mapping or origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError("names with values, as `name: value`")
        return dict(value) if len(arguments) < 2 else {k: convert(item, arguments[1]) for k, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float:
        # YAML 1.1 reads 1e-5, without a point, as text.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise TypeError("a number") from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise TypeError("a number")
    if type(value) is not hint:
        expected = {int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
        raise TypeError(expected.get(hint, hint.__name__))
    return value


def nearest(key: str, known: Sequence[str]) -> str:
    """A sentence with the known key that is most like the given one, or nothing."""
    close = difflib.get_close_matches(key, known, n=1)
    return f" Perhaps you meant {close[0]!r}." if close else ""


def build(kind: type[T], values: Mapping[str, Any], where: str, ready: Mapping[str, Any] | None = None) -> T:
    """The frozen dataclass of these values.

    Args:
        where: what an error message begins with, like "label.yaml: rewards[1]".
        ready: fields whose values are made already.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or what the dataclass itself refuses.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    given: dict[str, Any] = dict(ready or {})
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}.{nearest(str(key), list(fields))}")
        try:
            given[key] = convert(value, hints[key])
        except TypeError as rule:
            raise ValueError(f"{where}: {key} must be {rule}, got {value!r}.") from None
    for name, field in fields.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {name} is missing.")
    try:
        return kind(**given)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None


def plain(value: Any) -> Any:
    """The value as YAML can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """The `key: value` lines of a YAML file; raises ValueError naming the file where it is missing or no such thing."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: no such config file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is no valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    # YAML reads a key like 7 or no as a number or a truth value; none is a key of ours.
    return {str(key): value for key, value in values.items()}
