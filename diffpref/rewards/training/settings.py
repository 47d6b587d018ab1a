"""A reward's training settings read from YAML and the command line, and written back."""

from collections.abc import Sequence

from diffpref.rewards.training.config import RewardConfig
from diffpref.settings import command_line
from diffpref.settings.record import Reader

READER = Reader(RewardConfig)
EXAMPLE = "configs/reward/tiny.yaml"


def parse(arguments: Sequence[str], prog: str = "diffpref reward train") -> RewardConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it."""
    text = "Train a reward (a CLIP) on preferences."
    return command_line.parse(READER, arguments, prog=prog, description=text, example=EXAMPLE)
