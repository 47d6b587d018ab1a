"""Dataclasses whose own fields, and those of the choices that they hold, are keys of one mapping: entries of a list."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from diffpref.settings.axis import Axis, axis_of
from diffpref.settings.typed import build, nearest, plain

T = TypeVar("T")


def read_entry(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """The dataclass of these keys.

    Args:
        where: what an error message begins with, like "label.yaml: packs[1]".

    Raises:
        ValueError: an unknown key, one of a choice that was not made, a wrong type, or what a dataclass refuses.
    """
    axes, left = _axes(kind), dict(values)
    choices: dict[str, Any] = {}
    known = {f.name for f in dataclasses.fields(kind) if f.init and f.name not in axes}  # type: ignore[arg-type]
    for name, axis in axes.items():
        chosen = axis.member(left.pop(axis.key), where) if axis.key in left else _default(kind, name)
        own = {f.name for f in dataclasses.fields(chosen) if f.init}
        choices[name] = build(chosen, {key: left.pop(key) for key in own & set(left)}, where)
        known |= {axis.key, *own}
    for key in left:
        if key in known:
            continue
        for name, axis in axes.items():
            if (why := axis.foreign(key, type(choices[name]))) is not None:
                raise ValueError(f"{where}: {why}")
        raise ValueError(f"{where}: unknown key {key!r}.{nearest(str(key), sorted(known))}")
    return build(kind, left, where, choices)


def write_entry(entry: Any) -> dict[str, Any]:
    """The keys of a dataclass, ready for YAML: `read_entry` gives an equal one back."""
    write = getattr(entry, "to_entry", None)
    if write is not None:
        return plain(write())
    return flat_entry(entry)


def flat_entry(entry: Any) -> dict[str, Any]:
    """The fields of a dataclass, each choice as its name and its own fields."""
    flat: dict[str, Any] = {}
    axes = _axes(type(entry))
    for f in dataclasses.fields(entry):
        value = getattr(entry, f.name)
        if f.name in axes:
            flat[axes[f.name].key] = axes[f.name].name_of(type(value))
            flat |= {own.name: plain(getattr(value, own.name)) for own in dataclasses.fields(value) if own.init}
        else:
            flat[f.name] = plain(value)
    return flat


def _axes(kind: type) -> dict[str, Axis]:
    """The fields that are choices."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [f.name for f in dataclasses.fields(kind)]
    return {name: axis for name in fields if (axis := axis_of(hints[name])) is not None}


def _default(kind: type, name: str) -> type:
    made = next(f for f in dataclasses.fields(kind) if f.name == name)
    return type(made.default_factory() if made.default_factory is not dataclasses.MISSING else made.default)
