"""What is exported, and what every target answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch

from diffpref.backbones import Family
from diffpref.backbones.adapters.lora_stack import Layers, stack


@dataclass(frozen=True)
class Trained:
    """What is exported: a LoRA, or a whole network."""

    name: str
    """Of the run, for files and messages."""
    family: Family
    """The base model that it was trained over."""
    network: torch.nn.Module
    """The base's network on the meta device: layers and shapes."""
    layers: Layers | None
    """The LoRA; None for a whole network."""
    whole: Path | None
    """The whole network's folder; None for a LoRA."""
    base_values: Mapping[str, object] | None = None
    """Some values of the network that it was trained over, where the run has kept them."""
    base_named: bool = False
    """Whether the user has named the base, and not the run."""

    def lora(self, target: str) -> Layers:
        """The LoRA; ValueError for a whole network, which the target cannot hold.

        Args:
            target: what is asked for, for the message.
        """
        if self.layers is None:
            raise ValueError(
                f"{self.whole} is a whole network, and {target} holds a LoRA: export it with --to checkpoint, which "
                "ComfyUI and A1111 read, or --to diffusers."
            )
        return self.layers

    def even(self) -> Layers:
        """The LoRA with one rank and one scale for all layers, which every program reads alike: as it is where it has
        them, else of scale 1 and filled up with zeros."""
        layers = self.layers or {}
        one = len({(layer.rank, layer.scale) for layer in layers.values()}) == 1
        return layers if one else stack([(1.0, layers)])

    def at_scale_one(self) -> Layers:
        """The LoRA for programs that know no alpha: one rank for all layers, and the scale in the matrices."""
        layers = self.even()
        return layers if all(layer.scale == 1 for layer in layers.values()) else stack([(1.0, layers)])


@runtime_checkable
class Target(Protocol):
    """A program's form of what was trained. A member is a frozen dataclass; its fields are flags that only it has."""

    suffix: ClassVar[str]
    """Of the file that it writes; empty for a folder."""

    def check(self, trained: Trained) -> None:
        """Raise ValueError where this cannot be had in its form; before anything large is read."""
        ...

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        """Write the file, or into the folder, and return lines on what may surprise.

        Args:
            dtype: of the weights; None for what is usual.
        """
        ...
