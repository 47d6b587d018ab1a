"""A base model in one file, as model sites give them: written once as a pipeline's folder, which all else reads."""

from pathlib import Path

import torch

from diffpref.backbones.weight_files import PICKLES, STABILITY, read_tensors
from diffpref.files import atomic
from diffpref.files.cache import user_cache
from diffpref.files.hub import missing_path, stay_local_if_unreachable
from diffpref.files.identity import content_key

KEY = "pretrained_model_name_or_path"
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
    if not any(name.startswith(STABILITY) for name in tensors):
        raise ValueError(
            f"{KEY} {source} is no base model: it has no {STABILITY}... layers. A LoRA belongs into base_adapters or "
            "adapter_weights, the weights of a network alone into network_weights."
        )
    config = config or _usual_config(tensors)
    home = user_cache("bases")
    folder = home / f"{file.stem}-{content_key(*_samples(file), config)[:16]}"
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
    """The type of the network's weights, by the first of them."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        name = next(name for name in opened.keys() if name.startswith(STABILITY))
        return opened.get_tensor(name).dtype


def _samples(file: Path) -> list[bytes]:
    """The length of a safetensors file, its header, and blocks of it all."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = opened.read(8)
        parts = [str(size).encode(), opened.read(int.from_bytes(header, "little"))]
        for place in range(SAMPLES):
            opened.seek(place * max(0, size - BLOCK) // SAMPLES)
            parts.append(opened.read(BLOCK))
    return parts
