"""A base model in one file, as model sites give them: written once as a pipeline's folder, which all else reads."""

import json
import os
from pathlib import Path

import torch

from diffpref.backbones.weight_files import PICKLES, read_tensors
from diffpref.files import atomic
from diffpref.files.hub import missing_path, stay_local_if_unreachable
from diffpref.files.identity import content_key

KEY = "pretrained_model_name_or_path"
NETWORK = "model.diffusion_model."
"""How the layers of the network begin, in the names of Stability's own code."""
SAMPLES, BLOCK = 256, 2**16
"""A file is told from another by so many blocks of so many bytes, evenly apart: a training moves all of them."""


def pipeline_folder(source: str, config: str | None = None) -> str:
    """The folder of a pipeline that a single file is written to at its first use; another source as it is.

    It lies in the user's cache, XDG_CACHE_HOME or ~/.cache, as large as the file.

    Args:
        config: a pipeline's folder or name on the hub with the file's configuration, tokenizers and scheduler; None
            takes the one that diffusers knows for the file's layers.

    Raises:
        ValueError: no such file, a pickle, no base model, no configuration, or one without a file; names the file and
            the remedy.
    """
    file = Path(source).expanduser()
    if file.suffix not in (".safetensors", *PICKLES) or file.is_dir():
        if config is not None:
            raise ValueError(
                f"single_file_config is for a base model in one file, and {KEY} is {source}: leave it out."
            )
        return source
    if not file.is_file():
        raise ValueError(f"{KEY} {source}: {missing_path(source)}. Check the path.")
    tensors, _ = read_tensors(file, key=KEY, values=False)
    if not any(name.startswith(NETWORK) for name in tensors):
        raise ValueError(
            f"{KEY} {source} is no base model: it has no {NETWORK}... layers. A LoRA belongs into base_adapters or "
            "adapter_weights, the weights of a network alone into network_weights."
        )
    config = config or _usual_config(tensors)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffpref" / "bases"
    folder = home / f"{file.stem}-{content_key(_digest(file), config)[:16]}"
    home.mkdir(parents=True, exist_ok=True)
    from huggingface_hub.utils import WeakFileLock

    # Of several processes one writes, and the others find the folder.
    with WeakFileLock(home / f"{folder.name}.lock"):
        if not (folder / "model_index.json").is_file():
            print(f"{source}: written as a pipeline's folder, {folder}", flush=True)
            _convert(file, config, folder)
    return str(folder)


def _usual_config(tensors: dict[str, torch.Tensor]) -> str:
    """The name on the hub of the pipeline that has these layers."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    return DIFFUSERS_DEFAULT_PIPELINE_PATHS[infer_diffusers_model_type(tensors)][KEY]


def _convert(file: Path, config: str, folder: Path) -> None:
    import diffusers

    from diffpref.backbones import family_class
    from diffpref.backbones.checkpoint import Checkpoint, pipeline_class

    kind = pipeline_class(Checkpoint(config))
    family_class(kind, f"{KEY} {file}")
    stay_local_if_unreachable()
    try:
        pipeline = getattr(diffusers, kind).from_single_file(str(file), config=config, torch_dtype=_dtype(file))
    except Exception as problem:  # noqa: BLE001  of diffusers: its own classes of errors, and KeyErrors of other layers
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"{KEY} {file} could not be read as a {kind} with the configuration of {config}: name the pipeline that it "
            f"was made from in single_file_config. ({reason})"
        ) from None
    with atomic.new_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)


def _dtype(file: Path) -> torch.dtype:
    """The type of most of the network's weights."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        name = next(name for name in opened.keys() if name.startswith(NETWORK))
        return opened.get_tensor(name).dtype


def _digest(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        parts = [json.dumps([size, header]).encode(), opened.read(header)]
        for place in range(SAMPLES):
            opened.seek(place * max(0, size - BLOCK) // SAMPLES)
            parts.append(opened.read(BLOCK))
    return b"".join(parts)
