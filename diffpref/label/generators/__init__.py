"""Generators: where images come from, a diffusers pipeline or a user's function; each image has its own seed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from diffpref.label.generators.drawn import Drawn
from diffpref.settings.axis import Axis


@runtime_checkable
class Generator(Protocol):
    """A generator in memory: draws one image for each prompt; equal prompts and seeds in equal batches give equal
    images."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]: ...


@runtime_checkable
class Source(Protocol):
    """A frozen dataclass of what this kind of generator needs. `name` is the generator's, for messages."""

    def settings(self) -> Mapping[str, Any]:
        """The settings that decide the images, as the plan holds them."""
        ...

    def contents(self, hashes: Callable[[Path], str]) -> Mapping[str, str]:
        """Digests of the files, or commits on the hub, that decide the images; raises ValueError for a missing one.

        Args:
            hashes: the SHA-256 of a file; a caller may remember them.
        """
        ...

    def check(self, name: str) -> None:
        """Raise ValueError for what can be found wrong without loading weights.

        The second generator's mistake must not wait until the first has drawn a million images."""
        ...

    def open(self, device: torch.device, name: str) -> Generator:
        """The generator in memory; raises ValueError for a checkpoint or a class that does not exist."""
        ...


GENERATOR = Axis(
    "generator",
    {
        "pipeline": "diffpref.label.generators.pipeline:Pipeline",
        "function": "diffpref.label.generators.function:Function",
    },
)
