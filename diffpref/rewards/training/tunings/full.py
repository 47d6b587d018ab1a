"""The weights themselves are trained: all of them, or those of each tower's last layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from torch import Tensor, nn

from diffpref.rewards.training.tunings.tuning import on_the_cpu

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class FullTuning:
    """The weights of both towers, or of their last layers only."""

    trained_vision_layers: Annotated[int, Ge(0)] | None = None
    """Train the vision tower's last layers only, with its last norm and projection; 0 trains none of it."""
    trained_text_layers: Annotated[int, Ge(0)] | None = None
    """The same for the text tower."""

    def choose(self, clip: "CLIPModel", *, seed: int) -> None:
        clip.requires_grad_(True)
        vision, text = clip.vision_model, clip.text_model
        ends = [vision.post_layernorm, clip.visual_projection]
        _train_last("trained_vision_layers", vision, ends, self.trained_vision_layers)
        ends = [text.final_layer_norm, clip.text_projection]
        _train_last("trained_text_layers", text, ends, self.trained_text_layers)

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        return network.state_dict()

    def load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        network.load_state_dict(state)

    def merged(self, clip: "CLIPModel") -> dict[str, Tensor]:
        return on_the_cpu(clip.state_dict())

    def save(self, clip: "CLIPModel", folder: Path) -> None:
        """The merged model is all of it."""


def _train_last(name: str, tower: nn.Module, ends: list[nn.Module], count: int | None) -> None:
    """Freeze a tower but for its last layers and what follows them; None freezes nothing, 0 everything."""
    if count is None:
        return
    layers = list(tower.encoder.layers)  # type: ignore[union-attr,arg-type]
    if not 0 <= count <= len(layers):
        raise ValueError(f"{name} must be from 0 to the {len(layers)} layers that the tower has, got {count}.")
    for module in (tower, *ends):
        module.requires_grad_(False)
    for module in [*layers[len(layers) - count :], *ends] if count else []:
        module.requires_grad_(True)
