"""An axis of choices: a key whose value names a member, a frozen dataclass with the fields of this choice alone."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffpref.settings.dotted import is_address, load_callable
from diffpref.settings.typed import nearest

OWN = "or your own as module:Name or my_file.py:Name"


@dataclass(frozen=True)
class Axis:
    """A key, and the members that its value may name.

    It stands at the field of a record, `probe: Annotated[Probe, Axis("probe", PROBES)] = Forward()`; the fields of the
    chosen member are then flat keys beside it."""

    key: str
    members: Mapping[str, type | str]
    """The name -> the frozen dataclass, or its address "module:Class" where importing it at once would cost much."""
    derived: Callable[[Mapping[str, type]], str] | None = field(default=None, compare=False)
    """The member where the key is not given, from the classes that stand before it in the record."""

    def member(self, name: Any, where: str) -> type:
        """The class that a name or an address stands for.

        Raises:
            ValueError: no such name, or nothing at the address that can be a member; names the key and the remedy.
        """
        if not isinstance(name, str) or (name not in self.members and not is_address(name)):
            close = nearest(name, list(self.members)) if isinstance(name, str) else ""
            raise ValueError(
                f"{where}: {self.key} must be one of {', '.join(self.members)}, {OWN}, got {name!r}.{close}"
            )
        if name in self.members:
            return _load(self.members[name])
        try:
            found = load_callable(self.key, name)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None
        if not isinstance(found, type) or not dataclasses.is_dataclass(found):
            raise ValueError(f"{where}: {self.key} {name!r} must be a frozen dataclass, and it is none.")
        return found

    def keys(self) -> Iterator[tuple[str, set[str]]]:
        """Each member's name and its keys."""
        for name in self.members:
            yield name, {f.name for f in dataclasses.fields(self.member(name, self.key)) if f.init}

    def foreign(self, key: str, chosen: type) -> str | None:
        """Why a key cannot stand next to the chosen member: another one has it; None where no member has it."""
        owners = [name for name, keys in self.keys() if key in keys]
        if not owners:
            return None
        return (
            f"{key} belongs to {self.key}: {' or '.join(owners)}, and this is {self.key}: {self.name_of(chosen)}. "
            f"Set {self.key}: {owners[0]}, or leave {key} out."
        )

    def name_of(self, member: type) -> str:
        """The name of a member's class in YAML: that of the table, or its address.

        Raises:
            ValueError: a class inside a function, which nothing can find again.
        """
        address = f"{member.__module__}:{member.__qualname__}"
        for name, known in self.members.items():
            if known is member or known == address:
                return name
        if "<locals>" in member.__qualname__:
            raise ValueError(
                f"{self.key} {member.__qualname__} is defined inside a function, so that no config.yaml could name it: "
                "define it at the top of a file."
            )
        module = sys.modules.get(member.__module__)
        file = getattr(module, "__file__", None)
        by_file = member.__module__ == "__main__" or member.__module__.startswith("diffpref_user_")
        return f"{Path(file).resolve()}:{member.__qualname__}" if by_file and file else address


def axis_of(hint: Any) -> Axis | None:
    """The axis that a field is annotated with, if it is a choice."""
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Axis)), None)


def _load(member: type | str) -> type:
    if isinstance(member, type):
        return member
    module, _, name = member.partition(":")
    return getattr(importlib.import_module(module), name)
