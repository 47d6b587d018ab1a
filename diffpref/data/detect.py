"""Which schema a source has, by the names of its columns."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from diffpref.data.schemas import SCHEMAS, Schema
from diffpref.data.synonyms import meanings, schema_name

# What the webdataset builder leaves at the end of a column name: "jpg_0.jpg", "label_0.txt".
_TYPING_ERROR = 0.8
"""Share of letters (difflib's ratio) from which a name is another one with a typing error: "chosn" has 0.91."""
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
            guesses = _meant(name, known)
            hint = f"names that schemas use: {', '.join(known)}."
            if guesses:
                hint = f"did you mean {' or '.join(map(repr, guesses))}?"
            raise ValueError(f"{source}: --columns names {name!r}, which no schema uses; {hint}")
        if column not in columns:
            raise ValueError(f"{source}: --columns {name}={column}, but the columns are {', '.join(columns)}.")
    if len(set(overrides.values())) < len(overrides):
        raise ValueError(f"{source}: --columns uses one column twice ({dict(overrides)}): give each name its own.")
    for column in set(overrides.values()):
        names.pop(column, None)
    return {**names, **overrides}


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """The schemas' names that a user's own may stand for: by the table, else by a typing error.

    A name that says a side is taken only where almost all letters agree, and never one of two that are as close."""
    if (word := schema_name(name)) is not None:
        return [word]
    ratios = {other: difflib.SequenceMatcher(None, name, other).ratio() for other in known}
    best = max(ratios.values())
    return [other for other, ratio in ratios.items() if ratio == best] if best >= _TYPING_ERROR else []


class UnknownSchema(ValueError):
    """The columns fit no schema of preference data."""


def find_schema(names: Collection[str], schemas: Sequence[Schema] = SCHEMAS) -> Schema | None:
    """The first schema that finds all columns it needs among the names, and a mark where it has marks."""
    marked = (schema for schema in schemas if not schema.marks or set(schema.marks) & set(names))
    return next((schema for schema in marked if all(_spelling(need, names) for need in schema.needs)), None)


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
    # Who names both image columns by the schema's own names has said which schema it is.
    usable = [replace(schema, marks=()) if set(schema.needs[1:]) <= set(overrides) else schema for schema in usable]
    schema = find_schema(available, usable)
    if schema is None:
        raise UnknownSchema(_no_schema(columns, available, usable, source))
    spellings = {need.split("|")[0]: _spelling(need, available) for need in schema.needs}
    names = {first: available[name] for first, name in spellings.items() if name is not None}
    return schema, names | {name: available[name] for name in schema.optional if name in available}


def _no_schema(columns: Sequence[str], available: Mapping[str, str], usable: Sequence[Schema], source: str) -> str:
    # Which column is which comes from a table of names alone: letters that look alike once swapped the two sides.
    meant = {name: column for name, column in meanings(list(available)).items() if name not in available}

    def missing(schema: Schema) -> list[str]:
        return [need.split("|")[0] for need in schema.needs if _spelling(need, available) is None]

    def unknown(schema: Schema) -> float:
        unmarked = bool(schema.marks) and not set(schema.marks) & set(available)
        return unmarked + sum(need not in meant for need in missing(schema)) / len(schema.needs)

    nearest = min(usable, key=lambda schema: (unknown(schema), len(missing(schema)) / len(schema.needs)))
    needed = missing(nearest)
    spare = [column for column in available if column not in nearest.columns | set(meant.values())]
    known = "\n".join(f"  {schema.name}: {', '.join(schema.needs)}" for schema in SCHEMAS)
    return (
        f"{source}: the columns {', '.join(columns)} match no known schema. Nearest: {nearest.name}, which also needs "
        f"{', '.join(needed)}; {_remedy(needed, meant, spare)} Known schemas:\n{known}"
    )


_SAID_BY_THE_USER = {"chosen": "COLUMN_OF_THE_BETTER_IMAGE", "rejected": "COLUMN_OF_THE_WORSE_IMAGE"}


def _remedy(needed: Sequence[str], meant: Mapping[str, str], spare: Sequence[str]) -> str:
    """The flag that names the missing columns, and what only the user can know."""
    flag = " ".join(f"{name}={meant.get(name, _SAID_BY_THE_USER.get(name, 'YOUR_COLUMN'))}" for name in needed)
    if all(name in meant or name not in _SAID_BY_THE_USER for name in needed):
        return f"if they have other names, pass --columns {flag}."
    left = f" (of {', '.join(spare)})" if spare else ""
    return f"no name here says for certain which image is better, so you have to: --columns {flag}{left}."
