"""A finished run as a file for other programs. A target is one file and one line in `TARGETS`."""

from collections.abc import Mapping

from diffpref.export.target import Target, Trained

TARGETS: Mapping[str, type | str] = {
    "diffusers": "diffpref.export.diffusers:Diffusers",
    "comfyui": "diffpref.export.comfyui:ComfyUI",
    "kohya": "diffpref.export.kohya:Kohya",
    "peft": "diffpref.export.peft:PEFT",
    "checkpoint": "diffpref.export.checkpoint:SingleFile",
}
"""The choices of `to:` by name."""

__all__ = ["TARGETS", "Target", "Trained"]
