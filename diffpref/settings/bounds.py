"""Bounds that stand at a field, `rank: Annotated[int, Ge(1)]`: one check and one wording for all settings."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt


def _single(metadata: Sequence[Any]) -> Iterator[BaseMetadata]:
    """The bounds among an annotation's metadata, intervals taken apart."""
    for item in metadata:
        if isinstance(item, GroupedMetadata):
            yield from _single(list(item))
        elif isinstance(item, Ge | Gt | Le | Lt):
            yield item


def rule(metadata: Sequence[Any]) -> str:
    """The bounds in words, as they stand behind "must be": "above 0", "1 or above", "in [0, 1)"; empty for none."""
    low = high = ""
    closed_low = closed_high = False
    for bound in _single(metadata):
        if isinstance(bound, Ge | Gt):
            closed_low = isinstance(bound, Ge)
            low = f"{bound.ge if isinstance(bound, Ge) else bound.gt:g}"
        elif isinstance(bound, Le | Lt):
            closed_high = isinstance(bound, Le)
            high = f"{bound.le if isinstance(bound, Le) else bound.lt:g}"
    if low and high:
        return f"in {'[' if closed_low else '('}{low}, {high}{']' if closed_high else ')'}"
    if low:
        return f"{low} or above" if closed_low else f"above {low}"
    return (f"at most {high}" if closed_high else f"below {high}") if high else ""


def holds(value: Any, metadata: Sequence[Any]) -> bool:
    """Whether a number is within the bounds; nan is within none."""
    for bound in _single(metadata):
        match bound:
            case Ge(limit):
                kept = value >= limit
            case Gt(limit):
                kept = value > limit
            case Le(limit):
                kept = value <= limit
            case Lt(limit):
                kept = value < limit
            case _:
                kept = True
        if not kept:
            return False
    return True


def check(record: Any) -> None:
    """Check every field of a dataclass, and of the dataclasses in it, against its bounds.

    The reader of YAML files and command lines checks as well; this is for values that a program has made.

    Raises:
        ValueError: a value outside its bounds; names the field and the rule.
    """
    hints = typing.get_type_hints(type(record), include_extras=True)
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check(value)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for item in value:
                check(item)
        elif (broken := _broken(value, hints.get(field.name))) is not None:
            raise ValueError(f"{field.name} must be {broken}, got {value!r}.")


def _broken(value: Any, hint: Any) -> str | None:
    """The rule that the value breaks, if it breaks one."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        metadata = hint.__metadata__
        return None if value is None or holds(value, metadata) else rule(metadata)
    if origin in (typing.Union, types.UnionType) and value is not None:
        return next((b for a in typing.get_args(hint) if (b := _broken(value, a)) is not None), None)
    if origin is tuple and isinstance(value, tuple):
        return next((b for item in value if (b := _broken(item, typing.get_args(hint)[0])) is not None), None)
    return None
