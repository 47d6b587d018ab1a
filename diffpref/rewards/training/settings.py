"""A reward's training settings read from YAML and the command line, and written back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpref.rewards.training.config import RewardConfig
from diffpref.settings import command_line
from diffpref.settings.record import Reader

READER = Reader(RewardConfig)
EXAMPLE = "configs/reward/tiny.yaml"


def from_mapping(values: Mapping[str, Any], where: str, base: RewardConfig | None = None) -> RewardConfig:
    """The settings with the given keys replaced.

    Raises:
        ValueError: an unknown key, a wrong type or a value outside its range; names the key and `where`.
    """
    return READER.from_mapping(values, where, base)


def from_yaml(path: Path) -> RewardConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    return READER.from_yaml(path)


def to_mapping(config: RewardConfig) -> dict[str, Any]:
    """The flat keys of a config, ready for YAML: `from_mapping` gives the same config back."""
    return READER.to_mapping(config)


def parse(arguments: Sequence[str], prog: str = "diffpref reward train") -> RewardConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it."""
    text = "Train a reward (a CLIP) on preferences."
    return command_line.parse(READER, arguments, prog=prog, description=text, example=EXAMPLE)
