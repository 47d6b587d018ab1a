"""A config: a record of values whose fields are flat keys in YAML and on the command line, read and written here.

A record is a frozen dataclass. Each of its fields is a group (a dataclass), a choice (annotated with an `Axis`), or a
list of entries (`tuple[Group, ...]`), which only a YAML file can hold. The keys are the fields of the groups and of the
members that were chosen; every other key is an error that says what it belongs to.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from diffpref.settings.entries import write_entry
from diffpref.settings.part import DEFAULT, Part, made, part_of
from diffpref.settings.typed import nearest, plain, read_yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Reads and writes records of one class."""

    kind: type[T]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Another name of a key -> the key."""
    presets: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """(key, value) -> the keys that it stands for, where they are not given themselves."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """A key of other programs that is none here -> what does it here."""

    @property
    def parts(self) -> list[Part]:
        """The fields of the record."""
        hints = typing.get_type_hints(self.kind, include_extras=True)
        return [part_of(f.name, hints[f.name]) for f in dataclasses.fields(self.kind)]  # type: ignore[arg-type]

    def from_yaml(self, path: Path) -> T:
        """The record of a YAML file; raises ValueError naming the file and key where it is wrong."""
        return self.from_mapping(read_yaml(path), str(path))

    def from_mapping(self, values: Mapping[str, Any], where: str, base: T | None = None) -> T:
        """The record of these keys; what is not given is the base's, or the default.

        Raises:
            ValueError: an unknown key, one of a choice that was not made, a wrong type or a value outside its bounds;
                names the key and `where`.
        """
        given = self._expanded(values, where)
        chosen = self.choices(given, where, base)
        before = {} if base is None else self._kept(base, chosen)
        self.check_keys(given, chosen, where)
        values_of = {part.name: made(part, chosen, before, given, where, self.aliases, values) for part in self.parts}
        found = {name: value for name, value in values_of.items() if value is not DEFAULT}
        try:
            return self.kind(**found)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None

    def to_mapping(self, record: T) -> dict[str, Any]:
        """The flat keys of a record, ready for YAML: `from_mapping` gives an equal one back."""
        flat: dict[str, Any] = {}
        for part in self.parts:
            value = getattr(record, part.name)
            if part.listed:
                flat[part.name] = [write_entry(item) for item in value]
                continue
            if part.axis is not None:
                flat[part.axis.key] = part.axis.name_of(type(value))
            flat.update({f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init})
        return flat

    def choices(self, given: Mapping[str, Any], where: str, base: T | None) -> dict[str, type]:
        """The class of every group, from what is given, the base, or the default."""
        found: dict[str, type] = {}
        old: dict[str, type] = {}
        for part in self.parts:
            if part.listed:
                continue
            default = self._default(part, found)
            before = default if base is None else type(getattr(base, part.name))
            if part.axis is not None and part.axis.key in given:
                found[part.name] = part.axis.member(given[part.axis.key], where)
            elif part.axis is not None and base is not None and before is self._default(part, old):
                # What followed from an earlier choice follows from the new one.
                found[part.name] = default
            else:
                found[part.name] = before
            old[part.name] = before
        return found

    def chosen(self, record: T) -> dict[str, type]:
        """The class of every group of a record."""
        return {part.name: type(getattr(record, part.name)) for part in self.parts if not part.listed}

    def keys(self, chosen: Mapping[str, type]) -> list[str]:
        """Every key of these groups."""
        return [f.name for kind in chosen.values() for f in dataclasses.fields(kind) if f.init]

    def all_keys(self) -> set[str]:
        """Every key that some choice has."""
        keys = {part.name for part in self.parts if part.listed}
        keys |= {part.axis.key for part in self.parts if part.axis is not None}
        for part in self.parts:
            if part.axis is not None:
                keys |= {key for _, some in part.axis.keys() for key in some}
            elif not part.listed:
                keys |= {f.name for f in dataclasses.fields(part.kind)}
        return keys

    def _default(self, part: Part, before: Mapping[str, type]) -> type:
        if part.axis is not None and part.axis.derived is not None:
            return part.axis.member(part.axis.derived(before), part.axis.key)
        made = next(f for f in dataclasses.fields(self.kind) if f.name == part.name)  # type: ignore[arg-type]
        if made.default_factory is not dataclasses.MISSING:
            return type(made.default_factory())
        if made.default is not dataclasses.MISSING:
            return type(made.default)
        return part.kind

    def _expanded(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The keys under their own names, presets written out."""
        given: dict[str, Any] = {}
        for name, value in values.items():
            key = self.aliases.get(name, name)
            if key != name and key in values:
                raise ValueError(f"{where}: {name} and {key} are two names of one setting: give one of them.")
            given[key] = value
        names = {key for key, _ in self.presets}
        for key in names & set(given):
            preset = self.presets.get((key, given[key])) if isinstance(given[key], str) else None
            if preset is not None:
                del given[key]
                given = {**preset, **given}
            elif all(part.axis is None or part.axis.key != key for part in self.parts):
                known = [value for other, value in self.presets if other == key]
                raise ValueError(f"{where}: {key} must be one of {', '.join(known)}, got {given[key]!r}.")
        return given

    def _kept(self, base: T, chosen: Mapping[str, type]) -> dict[str, Any]:
        """The base's values where the choice is still the same."""
        kept: dict[str, Any] = {}
        for part in self.parts:
            value = getattr(base, part.name)
            if part.listed or type(value) is chosen[part.name]:
                kept[part.name] = value
        return kept

    def check_keys(self, given: Iterable[str], chosen: Mapping[str, type], where: str) -> None:
        """Raise ValueError for a key that no chosen value has: names the choice that has it, or the nearest key."""
        axes = [part for part in self.parts if part.axis is not None]
        known = {*self.keys(chosen), *(part.axis.key for part in axes if part.axis is not None)}
        known |= {part.name for part in self.parts if part.listed}
        for key in given:
            if key in known:
                continue
            for part in axes:
                assert part.axis is not None
                if (why := part.axis.foreign(key, chosen[part.name])) is not None:
                    raise ValueError(f"{where}: {why}")
            others = [*known, *self.aliases, *(key for key, _ in self.presets)]
            hint = f": {self.elsewhere[key]}" if key in self.elsewhere else f".{nearest(str(key), others)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")


def fields_of(value: object) -> dict[str, Any]:
    """The fields of a member, by name; none of what is no dataclass."""
    fields = getattr(type(value), "__dataclass_fields__", {})
    return {name: getattr(value, name) for name in fields}
