"""A reward's training settings read from YAML and the command line, and written back: flat keys, checked by type."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from diffpref.rewards.training.config import RewardConfig
from diffpref.settings.typed import read_yaml, replace_flat


def _fields() -> dict[str, tuple[str, Any]]:
    """Every key, with the group that holds it and its type."""
    groups = get_type_hints(RewardConfig)
    return {key: (name, hint) for name, kind in groups.items() for key, hint in get_type_hints(kind).items()}


def from_mapping(values: Mapping[str, Any], where: str, base: RewardConfig | None = None) -> RewardConfig:
    """The settings with the given keys replaced.

    Raises:
        ValueError: an unknown key or a wrong type; names the key and `where`.
    """
    return replace_flat(base or RewardConfig(), values, _fields(), where)


def from_yaml(path: Path) -> RewardConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    return from_mapping(read_yaml(path), str(path))


def to_mapping(config: RewardConfig) -> dict[str, Any]:
    """The flat keys of a config, ready for YAML: `from_mapping` gives the same config back."""
    flat = {key: getattr(getattr(config, group), key) for key, (group, _) in _fields().items()}
    return {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for k, v in flat.items()}


def parse(arguments: Sequence[str], prog: str = "diffpref reward train") -> RewardConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it.

    A true-or-false flag may stand alone for true: `--overwrite_output_dir`."""
    import tyro

    given = [part for a in arguments for part in (a.split("=", 1) if a[:2] == "--" else [a])]
    base, known, rest = RewardConfig(), _fields(), list[str]()
    while given:
        argument = given.pop(0)
        key = argument[2:].replace("-", "_") if argument[:2] == "--" else ""
        if key == "config":
            if not given:
                raise ValueError("--config needs a YAML file: --config configs/reward/tiny.yaml.")
            base = from_yaml(Path(given.pop(0)))
            continue
        rest.append(f"--{key}" if key else argument)
        if key in known and known[key][1] is bool:
            written = bool(given) and given[0].lower() in ("true", "false")
            rest.append(given.pop(0).capitalize() if written else "True")
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(RewardConfig)
    return tyro.cli(flat, args=rest, default=base, prog=prog, description="Train a reward (a CLIP) on preferences.")
