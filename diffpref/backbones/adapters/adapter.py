"""What every adapter answers: what of a network is trained, what the reference is beside it, and what is saved."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffpref.backbones import Family, Kind
from diffpref.types import Backbone


@dataclass(frozen=True)
class Words:
    """What a model card says of a result."""

    relation: str
    """The hub's word for its relation to the base model: "adapter" or "finetune"."""
    what: str
    """What comes before the base model's name, like "A LoRA for"."""
    load: str
    """Lines of Python that put it from `folder` into `pipe`, which has the base model; empty for a whole network."""
    tags: tuple[str, ...] = ()
    """Search tags of the hub."""


@runtime_checkable
class Streamed(Protocol):
    """A reference that has no memory of its own on the device."""

    def loaded(self) -> AbstractContextManager[None]:
        """Inside, the trained network holds the reference's weights."""
        ...


@runtime_checkable
class Adapter(Protocol):
    """What of a network is trained. A member is a frozen dataclass; its fields are the settings that only it has."""

    added: ClassVar[bool]
    """Whether the trained weights stand beside the network's own, which stay as they are. Else the output is a whole
    network, which may be another run's base and reference."""
    autocast: ClassVar[bool]
    """Whether the network runs under autocast: where it holds float32 and computes in less."""
    words: ClassVar[Words]

    @property
    def starts_equal(self) -> bool:
        """Whether policy and reference are one model before the first update: a run that finds them apart ends."""
        ...

    def identity(self) -> Mapping[str, object]:
        """The settings that must stay as they are for a checkpoint to be continued."""
        ...

    def counted(self) -> "Adapter":
        """The same without the settings that change no count of a step: `identity` alone says what it costs."""
        ...

    def check(self, family: Kind, name: str = "this backbone") -> None:
        """Raise ValueError where the backbone, called `name` in the text, cannot be trained in this way."""
        ...

    def check_start(self, family: Family) -> Sequence[str]:
        """Lines for the log on what the weights start from; reads no more than headers of files.

        Raises:
            ValueError: files to start from that do not fit the network; names the file, where and the remedy."""
        ...

    def check_policy_inverts(self) -> None:
        """Raise ValueError where the policy cannot run in the middle of the reference's work."""
        ...

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        """What the network's own weights are held in, where the run computes in `precision`."""
        ...

    def copy(self, network: torch.nn.Module, precision: torch.dtype) -> torch.nn.Module | None:
        """The reference's own network, made before anything is attached; None where it needs none."""
        ...

    def reference_bytes(self, parameters: int, precision: torch.dtype) -> int:
        """Bytes of the device that `copy` takes, for a network of so many parameters."""
        ...

    def attach(self, network: torch.nn.Module, family: Kind, *, seed: int) -> Sequence[str]:
        """Mark what is trained, with new weights where that takes some; returns lines for the log."""
        ...

    def reference(self, model: Backbone, network: torch.nn.Module) -> Backbone:
        """The reference over the trained network, where `copy` made none."""
        ...

    def streamed(self, network: torch.nn.Module) -> Streamed | None:
        """What puts the reference's weights in the network's place; made before any weight moves, None for nothing."""
        ...

    def state(self, network: torch.nn.Module) -> dict[str, Tensor]:
        """The trained tensors by name, as they are (no copy)."""
        ...

    def load(self, network: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put trained tensors back; ValueError where they are of other layers."""
        ...

    def save(self, network: torch.nn.Module, family: Family, folder: Path) -> None:
        """Write what stock diffusers loads into the folder, whole or not at all."""
        ...

    def continued(self, output: Path, base: Path | None) -> "tuple[Adapter, Path | None]":
        """The adapter and the `network_weights` of a run that goes on from another's output.

        Args:
            base: the other run's `network_weights`."""
        ...
