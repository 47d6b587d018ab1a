"""The command `diffpref reward`: `train` makes a reward from preferences, `evaluate` says how well it predicts them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from diffpref.settings import bounds

HELP = """usage: diffpref reward {train,evaluate} [--help]

Train a reward on preferences, or say how well a reward predicts them.

commands:
  train       train a CLIP (the same as accelerate launch -m diffpref.rewards.training)
  evaluate    accuracy, log-loss and PickScore's rule for ties, of any reward"""


@dataclass(frozen=True)
class Evaluate:
    """How well does a reward predict people's preferences? Prints a table; --output also writes JSON."""

    reward: str
    """A reward's name, a YAML file of `reward: NAME` and its settings (as a training run's reward.yaml), or your own
    function as module:function."""
    dataset_name: str
    """Preferences: a file, a folder or a data set on the hub, in any schema that `diffpref data` reads."""
    dataset_split: str = "train"
    settings: tuple[str, ...] = ()
    """Settings of the reward, as checkpoint=runs/mine/model processor="" dtype=bfloat16."""
    validation_dataset_name: str = ""
    """Where the threshold for ties is chosen; by default the data set itself, if validation_split is given."""
    validation_split: str = ""
    """The split that the threshold is chosen on; without both, the threshold is chosen on half of the prompts, and the
    other half is scored with it."""
    max_rows: int | None = None
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    batch_size: Annotated[int, Ge(1)] = 16
    """Rows whose images are decoded and scored at once."""
    device: str = ""
    """Where the reward computes; by default a GPU if there is one."""
    output: Path | None = None
    """A JSON file for the figures."""


def main(arguments: list[str]) -> int:
    """Runs one of the two commands; returns the exit status."""
    commands = {"train": train, "evaluate": evaluate}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP)
        raise SystemExit(0)
    print(f"diffpref reward: say train or evaluate.\n\n{HELP}", file=sys.stderr)
    return 2


def train(arguments: list[str]) -> int:
    """Parse the settings and train."""
    from diffpref.rewards.training.settings import parse

    config = parse(arguments)
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    from accelerate import PartialState

    from diffpref.rewards.training.loop import train as run

    folder = run(config)
    state = PartialState()
    state.destroy_process_group()
    state.print(f"done: {folder / 'reward.yaml'} names the reward, {folder / 'report.html'} says how it went")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Parse the settings, score every image and print the figures."""
    import tyro

    options = tyro.cli(Evaluate, args=arguments, prog="diffpref reward evaluate")
    bounds.check(options)
    import torch

    from diffpref.data.preferences import read_preferences
    from diffpref.files import atomic
    from diffpref.rewards import find_reward
    from diffpref.rewards.training.evaluate import predict, report
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    sources = [(options.dataset_name, options.dataset_split)]
    if options.validation_dataset_name or options.validation_split:
        split = options.validation_split or "train"
        sources.append((options.validation_dataset_name or options.dataset_name, split))
    read = [
        read_preferences(name, split=split, on_bad_row=options.on_bad_row, max_rows=options.max_rows, ties="keep")
        for name, split in sources
    ]
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    reward = find_reward(options.reward, device, settings=_settings(options.settings))
    found = [predict(reward, rows, batch_size=options.batch_size) for rows in read]
    figures = {
        "reward": reward.name,
        "provenance": dict(reward.provenance),
        "dataset": options.dataset_name,
        "split": options.dataset_split,
        "dropped": dict(read[0].dropped),
        **report(found[0], found[1] if len(found) > 1 else None),
    }
    print(_table(figures))
    if options.output is not None:
        atomic.write_json(options.output, figures)
    return 0


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """The reward's settings, each value read as YAML."""
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not name or not mark:
            raise ValueError(f"settings must be given as name=value, got {text!r}.")
        found[name] = yaml.safe_load(value) if value else ""
    return found


def _table(figures: Mapping[str, Any]) -> str:
    right, tied = figures["accuracy_without_ties"], figures.get("accuracy_with_ties")
    lines = [
        ("reward", str(figures["reward"])),
        ("pairs", f"{figures['pairs']}, of which {figures['ties']} are ties"),
        (
            "accuracy without ties",
            f"{right['rate']:.3f}, 95 % interval [{right['low']:.3f}, {right['high']:.3f}] (n = {right['n']})",
        ),
        ("log-loss without ties", f"{figures['log_loss_without_ties']:.4f} nats"),
    ]
    if tied:
        how = f"tie where the probabilities differ by at most {tied['threshold']:g}, chosen on"
        text = f"{tied['rate']:.3f} (n = {tied['pairs']}; {how} {tied['threshold_chosen_on']})"
        lines.append(("accuracy with ties", text))
    return "\n".join(f"{name:<23}{value}" for name, value in lines)
