"""What every optimizer answers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch

Trained: TypeAlias = Sequence[torch.nn.Parameter] | Sequence[Mapping[str, Any]]
"""Parameters, or torch's groups of parameters with settings of their own: {"params": [...], "weight_decay": 0.0}."""


@runtime_checkable
class Optimizer(Protocol):
    """How weights move. A member is a frozen dataclass; its fields are the settings that only it has."""

    state_bytes: ClassVar[int]
    """Bytes that it keeps for each trained weight of a matrix."""

    def check(self) -> None:
        """Raise ValueError where it cannot run here, before anything is loaded."""
        ...

    def build(self, parameters: Trained, rate: float) -> torch.optim.Optimizer:
        """The torch optimizer over the parameters.

        Args:
            rate: the learning rate after scaling.
        """
        ...
