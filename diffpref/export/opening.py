"""What the user has named, opened: the base model, and one LoRA of all that were given, or a whole network."""

import dataclasses
from collections.abc import Sequence

import torch

from diffpref.backbones import Family, Times, with_weights
from diffpref.backbones.adapters.lora_file import LoraFile, read_lora
from diffpref.backbones.adapters.lora_stack import Layers, stack, truncate
from diffpref.backbones.loading import bare_network, check_weights
from diffpref.export.target import Trained
from diffpref.files.hub import cached_name
from diffpref.pipelines.loaded import COMPONENTS
from diffpref.pipelines.results import Result, find_result
from diffpref.settings.typed import build
from diffpref.training.groups import Model
from diffpref.training.models import open_base

RESOLUTION = 1024
"""A size that every family takes; nothing that is exported depends on it."""


def open_trained(
    runs: Sequence[str], *, weights: Sequence[float], rank: int | None, base: str | None
) -> tuple[Trained, list[str]]:
    """What is exported, and lines on how it was made.

    Args:
        weights: of each run; empty for 1 each.
        rank: that the LoRA is cut back to; None keeps it.
        base: the base model, in place of what the runs say.

    Raises:
        ValueError: an unfinished run, weights for another base model, several whole networks, or a rank above what is
            there; names which and what to do.
    """
    if not runs:
        raise ValueError("name a run to export: diffpref export runs/mine --to comfyui.")
    if weights and len(weights) != len(runs):
        raise ValueError(f"--weights must have one number for each run, got {len(weights)} for {len(runs)}.")
    results = [find_result(run, *COMPONENTS) for run in runs]
    family, first = _open_base(results, base), results[0]
    network = bare_network(family)
    name = "+".join(_name(result) for result in results)
    trained = Trained(name, family, network, None, None, first.base_values(), base is not None)
    wholes = [result for result in results if result.network is not None]
    if wholes:
        _check_alone(wholes, results, weights, rank)
        _check_whole(family, wholes[0], network)
        return dataclasses.replace(trained, whole=wholes[0].network), []
    files = [read_lora(str(result.lora), network, family.component, key="export") for result in results]
    said = [line for file in files for line in file.remarks]
    layers, lines = _one(files, weights, rank)
    return dataclasses.replace(trained, layers=layers), [*said, *lines]


def _one(files: Sequence[LoraFile], weights: Sequence[float], rank: int | None) -> tuple[Layers, list[str]]:
    """The files as one LoRA, and lines on its rank and on what is lost."""
    lines: list[str] = []
    layers = files[0].layers
    if len(files) > 1 or any(weight != 1 for weight in weights):
        layers = stack([*zip(weights or [1.0] * len(files), (file.layers for file in files), strict=True)])
        lines = [f"stacked to rank {next(iter(layers.values())).rank}, which is exact"]
    largest = max(layer.rank for layer in layers.values())
    if rank is not None and rank > largest:
        raise ValueError(f"--rank {rank} is above the rank {largest} of what is exported: leave it out.")
    if rank is not None and rank < largest:
        layers, lost = truncate(layers, rank)
        lines.append(f"rank {largest} -> {rank}: {lost}")
    return layers, lines


def _open_base(results: Sequence[Result], base: str | None) -> Family:
    """The base model that the user names, or the first run that has settings, or a pipeline's folder itself."""
    result = next((result for result in results if result.settings), results[0])
    if result.settings:
        fields = {f.name for f in dataclasses.fields(Model)}
        given = {key: value for key, value in result.settings.items() if key in fields}
        model = build(Model, given, str(result.run / "config.yaml"))
    elif base is None and not (result.run / "model_index.json").is_file():
        raise ValueError(
            f"{result.run} came without a run's settings: name the base model that it was trained over with --base."
        )
    else:
        model = Model(str(result.run))
    # A run's LoRA file, and its whole network, have its base adapters in them.
    model = dataclasses.replace(model, base_adapters=())
    if base is not None:
        model = dataclasses.replace(model, pretrained_model_name_or_path=base, revision=None, variant=None)
    try:
        return open_base(model, Times(), resolution=RESOLUTION)
    except ValueError as problem:
        hint = "" if base else " Or name the base model with --base."
        raise ValueError(f"{problem}{hint}") from None


def _check_alone(
    wholes: Sequence[Result], results: Sequence[Result], weights: Sequence[float], rank: int | None
) -> None:
    if len(results) > 1:
        raise ValueError(f"{wholes[0].run} is a whole network, and only LoRAs can be stacked: export it alone.")
    if rank is not None or any(weight != 1 for weight in weights):
        raise ValueError(f"{wholes[0].run} is a whole network: --rank and --weights are for LoRAs, leave them out.")


def _check_whole(family: Family, result: Result, network: torch.nn.Module) -> None:
    """Raise ValueError where the whole network is not of the base model's architecture."""
    replaced = with_weights(family, result.network)
    check_weights(replaced.checkpoint, family.component, network)


def _name(result: Result) -> str:
    """A short name for files: the run's folder, or the file without its ending."""
    run = result.run
    if run.is_file():
        return run.stem
    cached = cached_name(run)
    return cached.rpartition("/")[2] if cached else run.resolve().name
