"""The settings of a labelling run read from YAML and the command line, and written back."""

from collections.abc import Sequence

from diffpref.label.config import LabelConfig
from diffpref.settings import command_line
from diffpref.settings.record import Reader

READER = Reader(LabelConfig)
EXAMPLE = "configs/label/tiny.yaml"
from_yaml = READER.from_yaml
from_mapping = READER.from_mapping
to_mapping = READER.to_mapping


def parse(arguments: Sequence[str], prog: str = "diffpref label") -> LabelConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it.

    Generators, rewards and packs are lists, and stand in the file alone."""
    text = "Make preference data: images of prompts by generators, scored by rewards. The lists generators, rewards "
    text += "and packs stand in the file of --config; every other key is a flag too."
    return command_line.parse(READER, arguments, prog=prog, description=text, example=EXAMPLE, needs_file=True)
