"""A reward's weights: found on disk or on the hub, read without running code, checked key by key, and hashed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffpref.files.identity import installed


def hub_file(repository: str, filename: str) -> Path:
    """A file of a repository of the Hugging Face hub, downloaded once.

    Raises:
        ValueError: it is neither in the cache nor reachable.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename))
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"{filename} of {repository} is neither cached nor reachable ({type(problem).__name__}: {problem}); "
            "download it where there is a network, and name the file as `checkpoint`."
        ) from None


def local_file(checkpoint: str, what: str) -> Path:
    """The file that the user named; raises ValueError where there is none."""
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ValueError(f"checkpoint {checkpoint!r}: there is no such file; name {what}.")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers reads from a folder: safetensors if there are any, else PyTorch's."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise ValueError(
            f"{folder} holds neither model*.safetensors nor pytorch_model*.bin; "
            "write the model with save_pretrained, or name the folder that has them."
        )
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file or of a PyTorch state dict, at the top or under "state_dict".

    Raises:
        ValueError: the file cannot be read without running code from it, or holds no named tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as problem:
            raise ValueError(f"{path} is no safetensors file ({problem}); download it again.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        # Beyond its first sentence torch advises to load the file without this check.
        reason = str(problem).strip().split(". ")[0]
        raise ValueError(
            f"{path} is no file of tensors alone ({type(problem).__name__}: {reason:.300}). A pickled module runs code "
            "when it is read, so it is refused: where you trust it, load it with its own code once, and write "
            "`safetensors.torch.save_file({k: v.contiguous() for k, v in module.state_dict().items()}, "
            "'weights.safetensors')`."
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f'{path} must hold named tensors, at the top or under "state_dict".')
    return dict(content)


def check_keys(path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, remedy: str) -> None:
    """Raises ValueError, with the file and the first keys, unless both have the same keys and shapes."""
    missing, unexpected = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    other = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    told = [f"{word} {_first(keys)}" for word, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if other:
        key = other[0]
        told.append(f"{key!r} has shape {tuple(given[key].shape)}, must have {tuple(wanted[key].shape)}")
    if told:
        raise ValueError(f"{path} holds other weights: {'; '.join(told)}. {remedy}")


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, remedy: str) -> None:
    """Copy a file's tensors into the module; raises ValueError unless they are exactly its own."""
    check_keys(path, tensors, module.state_dict(), remedy=remedy)
    module.load_state_dict(dict(tensors))


def versions(*packages: str) -> dict[str, str]:
    """The installed versions that scores depend on, by package."""
    return {**dict.fromkeys(packages, "absent"), **installed(packages)}


def _first(keys: Sequence[str]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
