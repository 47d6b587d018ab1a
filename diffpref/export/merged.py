"""The whole pipeline of what was trained: the base's parts around the trained network."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffpref.backbones import latents, with_weights
from diffpref.backbones.adapters.base_adapters import merge_layers
from diffpref.backbones.identity import has_values
from diffpref.backbones.loading import absent_parts
from diffpref.export.target import Trained


def load_pipeline(trained: Trained, dtype: torch.dtype) -> tuple[Any, Sequence[str]]:
    """The pipeline, on the CPU, and lines on what may surprise; a LoRA is merged in float32 and rounded once.

    Raises:
        ValueError: the base has other weights than the LoRA was trained over, unless the user has named it.
    """
    family, lines = trained.family, []
    network: Any = with_weights(family, trained.whole or family.checkpoint.network_weights).load_network(torch.float32)
    if trained.layers is not None:
        lines = check_base(trained, network)
        merge_layers(network, trained.layers)
    module, _, name = family.pipeline.partition(":")
    parts: dict[str, Any] = {family.component: network.to(dtype), **dict.fromkeys(absent_parts(family.checkpoint))}
    if family.checkpoint.vae is not None:
        parts["vae"] = latents.load_vae(family.checkpoint).to(dtype)
    kind: Any = getattr(importlib.import_module(module), name)
    return kind.from_pretrained(family.checkpoint.source, dtype=dtype, **parts, **family.checkpoint.options()), lines


def check_base(trained: Trained, network: torch.nn.Module) -> list[str]:
    """A line where the user has named another base than the LoRA was trained over; ValueError where nobody has."""
    values: Mapping[str, Any] | None = trained.base_values
    if values is None or has_values(network, values):
        return []
    said = f"{trained.name} was trained over other weights than {trained.family.checkpoint.source} has"
    if trained.base_named:
        return [f"{said}: merged into these all the same, as --base says"]
    raise ValueError(
        f"{said}: name the base model that it was trained over with --base, or name this one to merge into it."
    )
