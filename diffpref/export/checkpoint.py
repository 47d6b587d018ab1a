"""One file with all weights, for ComfyUI, A1111 and diffusers' `from_single_file`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpref.export.merged import load_pipeline
from diffpref.export.original import LAYOUTS
from diffpref.export.target import Trained
from diffpref.export.tensors import apart


@dataclass(frozen=True)
class SingleFile:
    """The whole model in one file, a LoRA merged: for ComfyUI's models/checkpoints, A1111 and `from_single_file`."""

    suffix: ClassVar[str] = ".safetensors"

    def check(self, trained: Trained) -> None:
        family = type(trained.family).__name__
        if family not in LAYOUTS:
            raise ValueError(
                f"there is no single-file checkpoint of {family}; those of {', '.join(LAYOUTS)} can be had. Export it "
                "with --to diffusers."
            )
        try:
            LAYOUTS[family].network(trained.network)
        except ValueError as problem:
            raise ValueError(f"no single-file checkpoint: {problem}. Export it with --to diffusers --merge.") from None

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        dtype = dtype or torch.float16
        pipeline, lines = load_pipeline(trained, dtype)
        parts: Mapping[str, Any] = pipeline.components
        tensors = LAYOUTS[type(trained.family).__name__](parts)
        save_file(apart(tensors, dtype), place, {"format": "pt"})
        return [*lines, *_remarks(tensors)]


def _remarks(tensors: Mapping[str, Tensor]) -> list[str]:
    """What stock readers of the file do otherwise than the pipeline."""
    projection = tensors.get("text_encoders.clip_l.transformer.text_projection.weight")
    if projection is None or torch.equal(projection, torch.eye(len(projection)).to(projection)):
        return []
    return [
        "the first text encoder has a projection, in place of which diffusers' from_single_file takes the identity: "
        "its images will differ; ComfyUI reads the file's"
    ]
