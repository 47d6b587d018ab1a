"""The settings of a training run read from YAML and the command line, and written back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpref.settings import command_line
from diffpref.settings.record import Reader
from diffpref.training.config import ALIASES, METHODS, TrainConfig
from diffpref.training.elsewhere import ELSEWHERE, MEANS

READER = Reader(TrainConfig, ALIASES, METHODS, ELSEWHERE)
EXAMPLE = "configs/sdxl/dpo.yaml"


def from_mapping(values: Mapping[str, Any], where: str, base: TrainConfig | None = None) -> TrainConfig:
    """The settings with the given keys replaced.

    Raises:
        ValueError: an unknown key, a wrong type or a value outside its range; names the key and `where`.
    """
    return READER.from_mapping(values, where, base)


def from_yaml(path: Path) -> TrainConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    return READER.from_yaml(path)


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """The flat keys of a config, ready for YAML: `from_mapping` gives the same config back."""
    return READER.to_mapping(config)


def parse(arguments: Sequence[str], prog: str = "diffpref train") -> TrainConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it."""
    for word in arguments:
        if (meaning := MEANS.get(word[2:].partition("=")[0].replace("-", "_"))) is not None:
            print(f"note: {meaning}")
    text = "Fine-tune a diffusion model on preferences."
    return command_line.parse(READER, arguments, prog=prog, description=text, example=EXAMPLE)
