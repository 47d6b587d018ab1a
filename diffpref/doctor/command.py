"""The command `diffpref doctor`: what a run will need before it starts, and what this machine has."""

import sys
from pathlib import Path
from typing import Any

HELP = """usage: diffpref doctor [--config FILE [--key value ...]] [--gpu_memory_gib N] [--json FILE]

What a training run will need before it starts: parameters, GiB for weights, gradients, optimizer, reference and
activations in each mode, FLOPs, the largest micro-batch and the mode that fits; and what this machine has. All is
counted on the real architecture without its weights; nothing is downloaded.

  --config FILE         a training config; its keys may follow, as for `diffpref train`
  --gpu_memory_gib N    memory of the GPU to plan for; by default that of the GPU here
  --json FILE           write the figures there as well"""


def main(arguments: list[str]) -> int:
    """Print the findings; ValueErrors are the user's to mend."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(HELP)
        return 0
    given = [part for each in arguments for part in (each.split("=", 1) if each[:2] == "--" else [each])]
    gpu, given = _take(given, "--gpu_memory_gib")
    file, given = _take(given, "--json")
    size = _gib(gpu)
    found: dict[str, Any] = {}
    folder = Path(".")
    if "--config" in given:
        lines, figures, folder = _run(given, size)
        print("\n".join(lines), end="\n\n")
        found["run"] = figures
    elif given:
        raise ValueError(
            f"unknown argument {given[0]!r}: name a config with --config FILE, or see diffpref doctor --help."
        )
    from diffpref.doctor.environment import report

    lines = report(folder)
    print("\n".join(["This machine:", *(f"  {line}" for line in lines)]))
    found["machine"] = lines
    if file is not None:
        from diffpref.files import atomic

        atomic.write_json(Path(file), found)
    return 0


def _take(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    if name not in arguments:
        return None, arguments
    place = arguments.index(name)
    if place + 1 == len(arguments):
        raise ValueError(f"{name} needs a value.")
    return arguments[place + 1], arguments[:place] + arguments[place + 2 :]


def _gib(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ValueError(f"--gpu_memory_gib must be a number above 0, got {text!r}.")
    return size


def _run(arguments: list[str], size: float | None) -> tuple[list[str], dict[str, Any], Path]:
    """Lines, figures and output folder of the config; another command's config gets a short answer."""
    from diffpref.settings.typed import read_yaml

    place = arguments.index("--config") + 1
    if place == len(arguments):
        raise ValueError("--config needs a YAML file: --config configs/sdxl/dpo.yaml.")
    values = read_yaml(Path(arguments[place]))
    other = _other(values, arguments[place])
    if other is not None:
        line, kind, folder = other
        return [line], {"kind": kind}, folder
    from diffpref.run.quiet import quiet_libraries
    from diffpref.training.settings import parse

    config = parse(arguments, prog="diffpref doctor")
    print("counting on meta tensors ...", file=sys.stderr)
    quiet_libraries()
    from diffpref.doctor.environment import gpu_gib
    from diffpref.doctor.needs import asked_of, needs_of
    from diffpref.doctor.table import mapping, text

    needs, asked = needs_of(config), asked_of(config)
    size = size if size is not None else gpu_gib()
    return [text(needs, asked, size)], {"kind": "train", **mapping(needs, asked, size)}, config.run.output_dir


def _other(values: dict[str, Any], where: str) -> tuple[str, str, Path] | None:
    """What to say of a config that is no training run of a diffusion model, if it is none."""
    if "generators" in values or "packs" in values:
        from diffpref.labelling.settings import from_mapping as read_label

        label = read_label(values, where)
        models = ", ".join(generator.name for generator in label.generators) or "none"
        rewards = ", ".join(use.name or use.reward for use in label.rewards) or "none"
        line = (
            f"{where} is for `diffpref label`, which holds one model at a time: generators {models}; rewards {rewards}."
        )
        return line, "label", label.run.output_dir
    from diffpref.rewards.training.settings import READER, from_mapping

    if "objective" not in values and set(values) <= READER.all_keys():
        reward = from_mapping(values, where)
        base = reward.base.pretrained_model_name_or_path
        line = f"{where} is for `diffpref reward train`: {base} is trained; its memory is not counted here."
        return line, "reward", reward.run.output_dir
    return None
