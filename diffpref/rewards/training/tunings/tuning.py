"""What every tuning of a CLIP answers: what of it learns, what a checkpoint holds, and what is written at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPModel


@runtime_checkable
class Tuning(Protocol):
    """What of a CLIP is trained. A member is a frozen dataclass; its fields are the settings that only it has."""

    def choose(self, clip: "CLIPModel", *, seed: int) -> None:
        """Mark the towers' weights that learn, with new ones where that takes some.

        Raises:
            ValueError: layers that the model does not have.
        """
        ...

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        """The trained tensors by name, as they are (no copy)."""
        ...

    def load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put trained tensors back; ValueError where they are of other layers."""
        ...

    def merged(self, clip: "CLIPModel") -> dict[str, Tensor]:
        """The weights as an untouched CLIPModel has them, copied to the CPU; the model stays as it is."""
        ...

    def save(self, clip: "CLIPModel", folder: Path) -> None:
        """Write into a run's folder what is kept besides the merged model."""
        ...


def on_the_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors, which later steps do not change."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
