"""Which schema a source has, by the names of its columns."""

import difflib
from collections.abc import Collection, Mapping, Sequence

from diffpref.data.schemas import SCHEMAS, Schema

# What the webdataset builder leaves at the end of a column name: "jpg_0.jpg", "label_0.txt".
_MEMBER_SUFFIXES = ("txt", "cls", "jpg", "jpeg", "png", "webp")


def _renamed(columns: Sequence[str], overrides: Mapping[str, str], source: str) -> dict[str, str]:
    """Name -> the source's column, with the user's names and without the suffixes of tar members."""
    names = {column: column for column in columns}
    for column in columns:
        stem, _, suffix = column.rpartition(".")
        if stem and suffix in _MEMBER_SUFFIXES:
            names.setdefault(stem, column)
    known = sorted(set().union(*(schema.columns for schema in SCHEMAS)))
    for name, column in overrides.items():
        if name not in known:
            guess = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {guess[0]!r}?" if guess else f"names that schemas use: {', '.join(known)}."
            raise ValueError(f"{source}: --columns names {name!r}, which no schema uses; {hint}")
        if column not in columns:
            raise ValueError(f"{source}: --columns {name}={column}, but the columns are {', '.join(columns)}.")
    if len(set(overrides.values())) < len(overrides):
        raise ValueError(f"{source}: --columns uses one column twice ({dict(overrides)}): give each name its own.")
    for column in set(overrides.values()):
        names.pop(column, None)
    return {**names, **overrides}


class UnknownSchema(ValueError):
    """The columns fit no schema of preference data."""


def find_schema(names: Collection[str], schemas: Sequence[Schema] = SCHEMAS) -> Schema | None:
    """The first schema that finds all columns it needs among the names."""
    return next((schema for schema in schemas if all(_spelling(need, names) for need in schema.needs)), None)


def _spelling(need: str, names: Collection[str]) -> str | None:
    """The first name of a needed column that is there."""
    return next((name for name in need.split("|") if name in names), None)


def detect(columns: Sequence[str], *, overrides: Mapping[str, str], source: str) -> tuple[Schema, dict[str, str]]:
    """The first schema whose columns are all there, and for each column it reads the source's name of it.

    Raises:
        ValueError: no schema fits (an UnknownSchema), or an override names what is not there.
    """
    available = _renamed(columns, overrides, source)
    usable = [schema for schema in SCHEMAS if set(overrides) <= schema.columns] or list(SCHEMAS)
    schema = find_schema(available, usable)
    if schema is None:
        raise UnknownSchema(_no_schema(columns, available, usable, source))
    spellings = {need.split("|")[0]: _spelling(need, available) for need in schema.needs}
    names = {first: available[name] for first, name in spellings.items() if name is not None}
    return schema, names | {name: available[name] for name in schema.optional if name in available}


def _no_schema(columns: Sequence[str], available: Mapping[str, str], usable: Sequence[Schema], source: str) -> str:
    def missing(schema: Schema) -> list[str]:
        return [need for need in schema.needs if _spelling(need, available) is None]

    nearest = min(usable, key=lambda schema: len(missing(schema)) / len(schema.needs))
    spare = [column for column in available if column not in nearest.columns]
    guesses = [(need, difflib.get_close_matches(need.split("|")[0], spare, 1, 0.4)) for need in missing(nearest)]
    remedy = " ".join(f"{need.split('|')[0]}={guess[0] if guess else 'YOUR_COLUMN'}" for need, guess in guesses)
    known = "\n".join(f"  {schema.name}: {', '.join(schema.needs)}" for schema in SCHEMAS)
    return (
        f"{source}: the columns {', '.join(columns)} match no known schema. Nearest: {nearest.name}, which also needs "
        f"{', '.join(missing(nearest))}; if they have other names, pass --columns {remedy}. Known schemas:\n{known}"
    )
