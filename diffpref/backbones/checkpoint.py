"""Where a base model's weights come from, and the class of its pipeline."""

import json
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline's folder or its name on the hub, and what replaces parts of it."""

    source: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    """An autoencoder in place of the pipeline's own."""
    max_sequence_length: int = 256
    """Tokens of the prompt of a T5, or of the zeros in its place."""
    network_weights: Path | None = None
    """A run's output folder, whose weights replace those of the trained network."""

    def options(self) -> dict[str, str | None]:
        """Keyword arguments for diffusers' `from_pretrained`."""
        return {"revision": self.revision, "variant": self.variant}

    def weights_of(self, component: str) -> Path | None:
        """The file that replaces the network's weights, if any; ValueError where it is missing."""
        if self.network_weights is None:
            return None
        for place in (self.network_weights / component, self.network_weights):
            if (file := place / WEIGHTS).is_file():
                return file
        raise ValueError(
            f"network_weights {self.network_weights} has no {component}/{WEIGHTS}: name the output folder of a run "
            "with adapter: full."
        )


def pipeline_class(checkpoint: Checkpoint) -> str:
    """The class that a pipeline's folder or its page on the hub names.

    Raises:
        ValueError: nothing there, or no pipeline; names which and what to do.
    """
    source = checkpoint.source
    if not source:
        raise ValueError("pretrained_model_name_or_path is empty: give a pipeline folder or a name on the hub.")
    if Path(source).is_dir():
        index = Path(source) / "model_index.json"
        if not index.is_file():
            raise ValueError(f"{source} is no diffusers pipeline: it has no model_index.json. Give its parent folder?")
        return json.loads(index.read_text())["_class_name"]
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"{source}: no such folder, and no name on the hub (OWNER/NAME). Check the path.")
    from diffusers import DiffusionPipeline

    from diffpref.backbones.loading import read_config

    try:
        return read_config(DiffusionPipeline, checkpoint)["_class_name"]
    except (OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"{source}: no such folder, and no such pipeline could be read from the hub. Check "
            f"pretrained_model_name_or_path, the network, and `hf auth login` for gated models. ({reason})"
        ) from None
