"""The architecture that a config names: a local folder's, the hub cache's or a built-in one; nothing is downloaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpref.backbones import family_class
from diffpref.backbones.checkpoint import class_named
from diffpref.backbones.single_file import pipeline_folder
from diffpref.counting.architectures import BUILT_IN, Architecture
from diffpref.counting.networks import family_of
from diffpref.training.groups import Model


def architecture_of(model: Model) -> Architecture:
    """The architecture of a base model.

    Raises:
        ValueError: an unknown one, or a folder that is no supported pipeline.
    """
    name = model.pretrained_model_name_or_path
    if not name:
        raise ValueError("pretrained_model_name_or_path is empty: give a pipeline folder or a name on the hub.")
    name = pipeline_folder(name, model.single_file_config)
    folder = Path(name) if Path(name).is_dir() else _cached(name, model.revision)
    if folder is not None:
        return read_architecture(folder, name)
    if name in BUILT_IN:
        return BUILT_IN[name]
    raise ValueError(
        f"{name}: unknown architecture. It is no folder here and not in the hub's cache, and doctor downloads nothing. "
        f"Known without their files are {', '.join(BUILT_IN)}; for another one run `hf download {name}` first."
    )


def read_architecture(folder: Path, name: str) -> Architecture:
    """The architecture of a pipeline's folder, of which only the small JSON files are needed."""
    index = _json(folder / "model_index.json", name)
    pipeline = class_named(index) if "_class_name" in index else ""
    network = _json(folder / family_class(pipeline, name).component / "config.json", name)
    encoders = [_json(file, name) for file in sorted(folder.glob("text_encoder*/config.json"))]
    lengths = tuple(encoder.get("max_position_embeddings", 0) for encoder in encoders)
    return Architecture(name, pipeline, network, None, tuple(encoders), lengths)


def text_tokens(architecture: Architecture, max_sequence_length: int) -> int | None:
    """Tokens of the prompt as the network sees it; None for the architecture's own number."""
    return family_of(architecture).prompt_tokens(architecture.text_lengths, max_sequence_length)


def _cached(name: str, revision: str | None) -> Path | None:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(name, "model_index.json", revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    component = family_class(class_named(json.loads(Path(index).read_text())), name).component
    return folder if (folder / component / "config.json").is_file() else None


def _json(file: Path, name: str) -> Mapping[str, Any]:
    if not file.is_file():
        raise ValueError(f"{name} is no diffusers pipeline: it has no {'/'.join(file.parts[-2:])}.")
    return json.loads(file.read_text())
