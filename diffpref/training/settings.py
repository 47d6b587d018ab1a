"""Settings read from YAML and the command line, and written back: flat keys, checked by name and type."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpref.settings.typed import read_yaml, replace_flat
from diffpref.training.config import ALIASES, OBJECTIVES, TrainConfig


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
    return replace_flat(config, values, _fields(config), where, aliases=ALIASES, others=("objective",))


def from_yaml(path: Path) -> TrainConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    return from_mapping(read_yaml(path), str(path))


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
