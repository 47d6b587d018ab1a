"""The settings of a command line: `--config FILE` first, then every `--key value` over it."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from diffpref.settings.axis import OWN
from diffpref.settings.named import read_config
from diffpref.settings.record import Reader

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """A command line taken apart: the file, the choices, and what is left for the flags of what was chosen."""

    config: Path | None
    choices: dict[str, str]
    rest: list[str]


def parse(
    reader: Reader[T], arguments: Sequence[str], *, prog: str, description: str, example: str, needs_file: bool = False
) -> T:
    """The record of a command line, whose --config may be the name of one that comes with the package.

    A true-or-false flag may stand alone for true, as in the diffusers scripts: `--gradient_checkpointing`. `--help`
    shows the choices, and the flags of what the file and the command line have chosen.

    Args:
        example: a config file that exists, for messages.
        needs_file: whether there is nothing to run without --config, because the file holds lists.

    Raises:
        ValueError: a file, a choice, a flag or a value that cannot be; SystemExit after --help.
    """
    given = _take_apart(reader, arguments, example)
    asks_help = bool({"-h", "--help"} & set(given.rest))
    if needs_file and given.config is None and not asks_help:
        raise ValueError(f"--config needs a YAML file: --config {example}.")
    base: T | None = None
    if given.config is not None:
        values, file = read_config(given.config)
        base = reader.from_mapping(values, str(file))
    where = ", ".join(f"--{key}" for key in given.choices) or "the command line"
    if base is not None or not needs_file:
        base = reader.from_mapping(given.choices, where, base)
    chosen = reader.chosen(base) if base is not None else reader.choices({}, where, None)
    reader.check_keys(
        (word[2:] for word in given.rest if word[:2] == "--" and word != "--help"), chosen, "the command line"
    )
    if asks_help:
        _show_help(reader, chosen, base, prog, description)
    found = _read_flags(chosen, given.rest)
    assert base is not None, "help exits"
    return reader.from_mapping(found, "the command line", base) if found else base


def _take_apart(reader: Reader[T], arguments: Sequence[str], example: str) -> Given:
    """The file, the choices by their flags, and the rest with keys under their own names."""
    words = [word for a in arguments for word in (a.split("=", 1) if a[:2] == "--" else [a])]
    choosing = {part.axis.key for part in reader.parts if part.axis is not None} | {key for key, _ in reader.presets}
    config: Path | None = None
    choices: dict[str, str] = {}
    rest: list[str] = []
    while words:
        word = words.pop(0)
        key = word[2:].replace("-", "_") if word[:2] == "--" else ""
        key = reader.aliases.get(key, key)
        if key == "config":
            if not words:
                raise ValueError(f"--config needs a YAML file: --config {example}.")
            config = Path(words.pop(0))
        elif key in choosing:
            if not words or words[0][:2] == "--":
                raise ValueError(f"--{key} needs a value.")
            choices[key] = words.pop(0)
        else:
            rest.append(f"--{key}" if key and key != "help" else word)
    return Given(config, choices, rest)


def _read_flags(chosen: Mapping[str, type], rest: Sequence[str]) -> dict[str, Any]:
    """The keys of the flags with their values, as YAML would give them."""
    hints = {key: hint for kind in chosen.values() for key, hint in typing.get_type_hints(kind).items()}
    found: dict[str, Any] = {}
    words = list(rest)
    while words:
        flag = words.pop(0)
        if flag[:2] != "--":
            raise ValueError(f"the command line: {flag!r} stands behind no flag: write --key value.")
        values: list[str] = []
        while words and words[0][:2] != "--":
            values.append(words.pop(0))
        if flag[2:] not in hints:
            raise ValueError(f"the command line: {flag} is a list of entries, which only a YAML file can hold.")
        found[flag[2:]] = _value(flag, values, hints[flag[2:]])
    return found


def _value(flag: str, words: Sequence[str], hint: Any) -> Any:
    """The words behind a flag, as YAML would give them; what does not fit stays text, and its key's rule refuses it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return None if list(words) == ["None"] else _value(flag, words, inner)
    if origin is tuple:
        return [_value(flag, [word], arguments[0]) for word in words]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if len(words) % 2:
            raise ValueError(f"{flag} needs names with values: {flag} NAME VALUE NAME VALUE.")
        return {name: _value(flag, [value], arguments[1]) for name, value in zip(words[::2], words[1::2], strict=True)}
    if hint is bool and not words:
        return True
    if len(words) != 1:
        raise ValueError(f"{flag} needs " + (f"one value, got {' '.join(words)}." if words else "a value."))
    (word,) = words
    if hint is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if hint in (int, float):
        try:
            return hint(word)
        except ValueError:
            return word
    return next((value for value in arguments if str(value) == word), word) if origin is typing.Literal else word


def _show_help(
    reader: Reader[T], chosen: Mapping[str, type], base: T | None, prog: str, description: str
) -> typing.NoReturn:
    """Print the flags of what was chosen, with their defaults, and exit."""
    import tyro

    groups = {} if base is None else {name: getattr(base, name) for name in chosen}
    tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)(
            _flags(reader, chosen, groups)
        ),
        args=["--help"],
        prog=prog,
        description=description,
    )
    raise AssertionError("help exits")


def _flags(reader: Reader[T], chosen: Mapping[str, type], groups: Mapping[str, Any]) -> type:
    """A dataclass of the groups and members that were chosen, whose defaults are theirs, with the choices in front.

    tyro reads it; the choices were taken from the command line before, and stand here for --help alone."""

    choices: list[Any] = [
        (
            "config",
            _shown(Path | None, "A YAML file of these keys, or a name like tiny-sdxl/dpo; flags go over it."),
            None,
        )
    ]
    for part in reader.parts:
        if part.axis is not None:
            now = part.axis.name_of(chosen[part.name])
            text = f"One of {', '.join(part.axis.members)}, {OWN}; its own flags are below."
            choices.append((part.axis.key, _shown(str, text), now))
    for key in dict.fromkeys(key for key, _ in reader.presets):
        if all(key != name for name, *_ in choices):
            names = ", ".join(value for other, value in reader.presets if other == key)
            choices.append((key, _shown(str, f"One of {names}: stands for the choices that make it."), ""))
    fields: list[Any] = [("choices", dataclasses.make_dataclass("Choices", [_field(*one) for one in choices]), ...)]
    fields += [(name, kind, groups.get(name, ...)) for name, kind in chosen.items()]
    fields[0] = (*fields[0][:2], fields[0][1]())
    return dataclasses.make_dataclass("Settings", [_field(*one) for one in fields], kw_only=True)


def _field(name: str, kind: Any, default: Any) -> Any:
    return (name, kind) if default is ... else (name, kind, dataclasses.field(default_factory=lambda: default))


def _shown(kind: Any, text: str) -> Any:
    import tyro

    return Annotated[kind, tyro.conf.arg(help=text)]
