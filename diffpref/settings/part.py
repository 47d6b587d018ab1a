"""One field of a record: what kind of field it is, and its value from the keys that are given."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from diffpref.settings.axis import Axis, axis_of
from diffpref.settings.entries import read_entry
from diffpref.settings.typed import convert

DEFAULT = object()
"""Stands for the value that the record's own class gives."""


@dataclass(frozen=True)
class Part:
    """One field of a record: a group of its own, a choice, or a list of entries."""

    name: str
    kind: Any
    """The group's class; of a choice the protocol; of a list its entries' class."""
    axis: Axis | None = None
    listed: bool = False


def part_of(name: str, hint: Any) -> Part:
    """The field of this name and type."""
    if typing.get_origin(hint) is Annotated:
        return Part(name, typing.get_args(hint)[0], axis_of(hint))
    if typing.get_origin(hint) is tuple:
        return Part(name, typing.get_args(hint)[0], listed=True)
    return Part(name, hint)


def made(
    part: Part,
    chosen: Mapping[str, type],
    before: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    aliases: Mapping[str, str],
    written: Mapping[str, Any],
) -> Any:
    """The value of a field of the record, or `DEFAULT` for a list that is not given.

    Args:
        chosen: the class of every group.
        before: the base's values where the choice is still the same.
        given: the keys under their own names; `written` as the user wrote them, for messages.

    Raises:
        ValueError: a wrong type, a missing key, or a member that lacks what its axis asks for; names `where`.
    """
    if part.listed:
        if part.name not in given:
            return before.get(part.name, DEFAULT)
        return tuple(_entries(part, given[part.name], f"{where}: {part.name}"))
    kind = chosen[part.name]
    hints = typing.get_type_hints(kind, include_extras=True)
    mine: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if f.name in given:
            name = next((a for a, key in aliases.items() if key == f.name and a in written), f.name)
            try:
                mine[f.name] = convert(given[f.name], hints[f.name])
            except TypeError as rule:
                raise ValueError(f"{where}: {name} must be {rule}, got {given[f.name]!r}.") from None
    _take_one(kind, mine, where)
    for f in dataclasses.fields(kind):
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and f.name not in mine and part.name not in before:
            raise ValueError(f"{where}: {f.name} is missing.")
    try:
        if part.name in before:
            return dataclasses.replace(before[part.name], **mine) if mine else before[part.name]
        value = kind(**mine)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    protocol = next((k for k in typing.get_args(part.kind) or (part.kind,) if getattr(k, "_is_protocol", False)), None)
    if part.axis is not None and protocol is not None and not isinstance(value, part.kind):
        lacking = [name for name in _protocol_names(protocol) if not hasattr(value, name)]
        raise ValueError(
            f"{where}: {part.axis.key} {part.axis.name_of(kind)} lacks {', '.join(lacking)}: add them, as "
            f"{protocol.__module__}.{protocol.__name__} describes them."
        )
    return value


def _take_one(kind: type, mine: dict[str, Any], where: str) -> None:
    """Of two keys that say the same thing, the one that is given takes the other's place.

    A class names such pairs in `alternatives`. ValueError where both are given."""
    for pair in getattr(kind, "alternatives", ()):
        given = [key for key in pair if mine.get(key) is not None]
        if len(given) == 2:
            raise ValueError(f"{where}: {pair[0]} and {pair[1]} say the same thing: give one of them.")
        if given:
            mine.update({key: None for key in pair if key not in given})


def _protocol_names(protocol: Any) -> list[str]:
    names = getattr(protocol, "__protocol_attrs__", ()) or {*dir(protocol), *protocol.__annotations__}
    return sorted(name for name in names if name[:1] != "_" or name == "__call__")


def _entries(part: Part, value: Any, where: str) -> Iterator[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{where} must be a list of `- name: ...` entries, got {value!r:.80}.")
    read = getattr(part.kind, "from_entry", None) or partial(read_entry, part.kind)
    for place, entry in enumerate(value):
        yield read(entry, f"{where}[{place}]")
