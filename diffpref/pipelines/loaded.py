"""What of a pipeline is the policy, and what is the reference beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

COMPONENTS = ("unet", "transformer")
"""Where pipelines have the network that is trained."""


@dataclass(frozen=True)
class Loaded:
    """What `load` has put into a pipeline's network."""

    run: Path
    """The run's folder, or the folder or file of the weights."""
    adapter: str | None
    """The LoRA's name in the network; None for a whole network."""
    base: torch.nn.Module | None
    """The pipeline's own network, of which a whole network has taken the place."""


LOADED: WeakKeyDictionary[torch.nn.Module, Loaded] = WeakKeyDictionary()
"""By the network that is in the pipeline now."""


def component_of(pipe: Any) -> str:
    """The name of the pipeline's network; ValueError where it has none that could have been trained."""
    for name in COMPONENTS:
        if isinstance(getattr(pipe, name, None), torch.nn.Module):
            return name
    raise ValueError(f"{type(pipe).__name__} has no unet and no transformer: give a diffusers pipeline.")


def tuner_layers(network: torch.nn.Module) -> list[Any]:
    """The layers that hold LoRA matrices."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_adapters(layers: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Inside, these LoRAs are off and the others as they were; at the end each layer is as before, to its weights."""
    before = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    try:
        for layer, active, _ in before:
            left = [name for name in active if name not in names]
            # peft keeps no empty list of active adapters.
            if left:
                layer._active_adapter = left
            else:
                layer._disable_adapters = True
        yield
    finally:
        for layer, active, off in before:
            layer._active_adapter, layer._disable_adapters = active, off
