"""diffusers' own forms: a LoRA file by its names, or a whole pipeline folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file

from diffpref.backbones.adapters.lora_file import LORA_FILE, METADATA
from diffpref.backbones.adapters.lora_stack import tensors_of
from diffpref.export.merged import load_pipeline
from diffpref.export.target import Trained
from diffpref.export.tensors import layers_apart


@dataclass(frozen=True)
class Diffusers:
    """A folder for diffusers: `pipe.load_lora_weights(FOLDER)`, or with merge and for a whole network
    `DiffusionPipeline.from_pretrained(FOLDER)`."""

    suffix: ClassVar[str] = ""

    merge: bool = False
    """A LoRA: write the whole pipeline with the LoRA merged into its network."""

    def check(self, trained: Trained) -> None:
        """Every backbone has a form of diffusers."""

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        if trained.whole is not None or self.merge:
            pipeline, lines = load_pipeline(trained, dtype or torch.float32)
            pipeline.save_pretrained(place)
            return lines
        # Readers of before the header had an alpha take rank for it, so the scale is in the matrices.
        layers = layers_apart(trained.at_scale_one(), dtype)
        component = trained.family.component
        rank = next(iter(layers.values())).rank
        config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(layers)}
        notes = {"format": "pt", METADATA: json.dumps({f"{component}.{key}": value for key, value in config.items()})}
        tensors = {f"{component}.{name}": tensor for name, tensor in tensors_of(layers).items()}
        save_file(tensors, place / LORA_FILE, notes)
        return ()
