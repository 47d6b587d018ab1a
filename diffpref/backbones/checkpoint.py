"""Where a base model's weights come from, and the class of its pipeline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpref.backbones.weight_files import find_file, refuse_pickle, shards_of
from diffpref.files.hub import may_be_hub_name, missing_path, stay_local_if_unreachable

STEMS = ("diffusion_pytorch_model", "model")
WEIGHTS = f"{STEMS[0]}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline's folder, its name on the hub or its single file, and what replaces parts of it."""

    source: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    """An autoencoder in place of the pipeline's own."""
    max_sequence_length: int = 256
    """Tokens of the prompt of a T5, or of the zeros in its place."""
    network_weights: Path | None = None
    """A run's output folder, or other weights of the trained network, which replace the pipeline's."""
    base_adapters: tuple[str, ...] = ()
    """LoRA files, as FILE or FILE=WEIGHT, that are merged into the network."""
    single_file_config: str | None = None
    """The pipeline whose configuration a source of one file has; None for the usual one."""

    def options(self) -> dict[str, str | None]:
        """Keyword arguments for diffusers' `from_pretrained`."""
        return {"revision": self.revision, "variant": self.variant}

    def weights_of(self, component: str) -> tuple[Path, ...]:
        """The files that replace the network's weights, if any: one, or the shards that an index names.

        Raises:
            ValueError: no such file or name on the hub, a missing shard, or pickles only; names it and the remedy.
        """
        place = self.network_weights
        if place is None:
            return ()
        if place.is_file():
            refuse_pickle(place, key="network_weights")
            return shards_of(place, key="network_weights")
        folders = (f"{component}/", "")
        names = [f"{folder}{name}" for folder in folders for name in weight_names(self.variant)]
        file = find_file(place, names, key="network_weights")
        if file is not None:
            return shards_of(file, key="network_weights")
        if pickle := find_file(place, [f"{folder}{STEMS[0]}.bin" for folder in folders], key="network_weights"):
            refuse_pickle(pickle, key="network_weights")
        raise ValueError(
            f"network_weights {place} has no {component}/{WEIGHTS}, nor its shards: name the output folder of a run "
            "with adapter: full, or a .safetensors file of the network."
        )


def weight_names(variant: str | None) -> list[str]:
    """The names of a network's weights, whole or as an index of shards: full precision first, then a variant's."""
    found: list[str] = []
    for kind in dict.fromkeys(("", variant or "fp16", "fp16")):
        dotted = f".{kind}" if kind else ""
        found += [f"{stem}.safetensors.index{dotted}.json" for stem in STEMS]
        found += [f"{stem}{dotted}.safetensors" for stem in STEMS]
    return found


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
        return class_named(json.loads(index.read_text(encoding="utf-8")))
    if not may_be_hub_name(source):
        raise ValueError(
            f"{source}: no such folder, and no name on the hub (OWNER/NAME): {missing_path(source)}. Check the path."
        )
    stay_local_if_unreachable()
    from diffusers import DiffusionPipeline

    from diffpref.backbones.loading import read_config

    try:
        return class_named(read_config(DiffusionPipeline, checkpoint))
    except (OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"{source}: no such folder, and no such pipeline could be read from the hub. Check "
            f"pretrained_model_name_or_path, the network, and `hf auth login` for gated models. ({reason})"
        ) from None


def class_named(index: Mapping[str, Any]) -> str:
    """The class that an index names, alone or after the file that brings it along."""
    name = index["_class_name"]
    return name if isinstance(name, str) else name[-1]
