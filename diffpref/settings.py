"""Settings read from YAML and the command line, and written back: flat keys, checked by name and type."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffpref.config import ALIASES, OBJECTIVES, TrainConfig


def _groups(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    for group in dataclasses.fields(config):
        yield group.name, getattr(config, group.name)


def _fields(config: TrainConfig) -> dict[str, tuple[str, Any]]:
    """Every key, with the group that holds it and its type."""
    found: dict[str, tuple[str, Any]] = {}
    for name, group in _groups(config):
        hints = typing.get_type_hints(type(group))
        found.update({f.name: (name, hints[f.name]) for f in dataclasses.fields(group)})
    return found


def _convert(value: Any, hint: Any) -> Any:
    """The YAML value as the field's type; raises TypeError where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)))
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
            return tuple(_convert(item, arguments[0]) for item in value)
        except TypeError as rule:
            raise TypeError(f"a list of {rule}") from None
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


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" Perhaps you meant {close[0]!r}." if close else ""


def from_mapping(values: Mapping[str, Any], where: str, base: TrainConfig | None = None) -> TrainConfig:
    """The settings with the given keys replaced.

    Raises:
        ValueError: an unknown key, a wrong type or a value outside its range; names the key and `where`.
    """
    config = base or TrainConfig()
    values = dict(values)
    if "objective" in values:
        name = values.pop("objective")
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise ValueError(f"{where}: objective must be one of {sorted(OBJECTIVES)}, got {name!r}.")
        config = dataclasses.replace(config, objective=OBJECTIVES[name]())
    known = _fields(config)
    changes: dict[str, dict[str, Any]] = {}
    for given, value in values.items():
        key = ALIASES.get(given, given)
        if key != given and key in values:
            raise ValueError(f"{where}: {given} and {key} are two names of one setting: give one of them.")
        if key not in known:
            raise ValueError(f"{where}: unknown key {given!r}.{_nearest(given, [*known, *ALIASES, 'objective'])}")
        group, hint = known[key]
        try:
            changes.setdefault(group, {})[key] = _convert(value, hint)
        except TypeError as rule:
            raise ValueError(f"{where}: {given} must be {rule}, got {value!r}.") from None
    try:
        parts = {g: dataclasses.replace(getattr(config, g), **fields) for g, fields in changes.items()}
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    return dataclasses.replace(config, **parts)


def from_yaml(path: Path) -> TrainConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
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
    return from_mapping({str(key): value for key, value in values.items()}, str(path))


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """The flat keys of a config, ready for YAML: `from_mapping` gives the same config back."""
    kind = type(config.objective)
    name = next((key for key, cls in OBJECTIVES.items() if cls is kind), kind.__name__)
    flat: dict[str, Any] = {"objective": name}
    for _, group in _groups(config):
        for f in dataclasses.fields(group):
            value = getattr(group, f.name)
            flat[f.name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return flat


def parse(arguments: Sequence[str], prog: str = "diffpref train") -> TrainConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it.

    A true-or-false flag may stand alone for true, as in the diffusers scripts: `--gradient_checkpointing`."""
    import tyro

    base, known, rest = TrainConfig(), _fields(TrainConfig()), list[str]()
    given = [
        part for argument in arguments for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    objective: str | None = None
    for place, argument in enumerate(given):
        key = argument[2:].replace("-", "_") if argument.startswith("--") else ""
        key, following = ALIASES.get(key, key), given[place + 1] if place + 1 < len(given) else ""
        if place and given[place - 1] in ("--config", "--objective"):
            continue
        if key == "config":
            if not following:
                raise ValueError("--config needs a YAML file: --config configs/sdxl/dpo.yaml.")
            base = from_yaml(Path(following))
        elif key == "objective":
            objective = following
        else:
            rest.append(f"--{key}" if key else argument)
            if key in known and known[key][1] is bool:
                written = following.lower() in ("true", "false")
                rest.append(given.pop(place + 1).capitalize() if written else "True")
    if objective is not None and OBJECTIVES.get(objective) is not type(base.objective):
        base = from_mapping({"objective": objective}, "--objective", base)
    # AvoidSubcommands: the objective of the config stays, and its fields are flags like all others.
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)(
        TrainConfig
    )
    return tyro.cli(flat, args=rest, default=base, prog=prog, description="Fine-tune a diffusion model on preferences.")
