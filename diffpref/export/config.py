"""The settings of an export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from diffpref.export import TARGETS, Target
from diffpref.export.diffusers import Diffusers
from diffpref.settings.axis import Axis
from diffpref.settings.record import Reader


@dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    runs: tuple[str, ...] = ()
    """Finished runs, files or folders with a LoRA (also of peft), folders with a network, or names of these on the
    hub. They can stand before all flags without this key. Several LoRAs become one."""
    weights: tuple[float, ...] = ()
    """The weight of each LoRA; by default 1 each."""
    rank: Annotated[int, Ge(1)] | None = None
    """Cut the LoRA back to this rank. What is lost is printed."""
    base: str | None = None
    """The base model's folder or name on the hub: for weights that came without a run's settings, and to merge a LoRA
    into another base than it was trained over."""
    output: Path | None = None
    """The file or folder to write; by default NAME-TARGET in this folder, as mine-comfyui.safetensors."""
    overwrite: bool = False
    """Replace what is there."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """The precision of the weights; by default float16 for a checkpoint, a LoRA's own, and float32 for a pipeline."""


@dataclass(frozen=True)
class ExportConfig:
    """An export: what, and the target, whose own fields are flags too."""

    what: Export = field(default_factory=Export)
    target: Annotated[Target, Axis("to", TARGETS)] = field(default_factory=Diffusers)


READER = Reader(ExportConfig)
EXAMPLE = "export.yaml"
