"""Finding the files of weights that a user names: in a folder, as a file, or on the hub; pickles are never read."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffpref.files.hub import may_be_hub_name, stay_local_if_unreachable

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
STABILITY = "model.diffusion_model."
"""How a network's weights begin in a checkpoint of all parts, as Stability's own code writes it."""


def find_file(root: Path | str, names: Sequence[str], *, key: str) -> Path | None:
    """The first of these files that a folder has, or a repository on the hub (OWNER/NAME); None where it has none.

    Args:
        key: the setting that names the root, for messages.

    Raises:
        ValueError: what could be a name on the hub is no folder, and neither there nor in the hub's cache.
    """
    folder = Path(root)
    if not folder.is_dir():
        if not may_be_hub_name(str(root)):
            return None
        found = _on_the_hub(str(root), names, key)
        if found is None or not found.is_dir():
            return found
        folder = found
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _on_the_hub(repository: str, names: Sequence[str], key: str) -> Path | None:
    """The file, downloaded; where the hub cannot be asked, the folder of what was downloaded before."""
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

    stay_local_if_unreachable()
    try:
        there = set(list_repo_files(repository))
    except Exception as problem:  # noqa: BLE001  whatever keeps the hub from answering, the cache may have the file
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except (OSError, ValueError):
            reason = " ".join(str(problem).split())
            raise ValueError(
                f"{key} {repository}: no such folder, and it could not be read from the hub. Check the name, the "
                f"network, and `hf auth login` for gated models. ({reason})"
            ) from None
    name = next((name for name in names if name in there), None)
    if name is None:
        return None
    file = Path(hf_hub_download(repository, name))
    for shard in _shards(file):
        hf_hub_download(repository, (PurePosixPath(name).parent / shard).as_posix())
    return file


def shards_of(file: Path, *, key: str) -> tuple[Path, ...]:
    """The files that an index names, each once and in order; another file is its own only one.

    Raises:
        ValueError: a shard that is not there; names it.
    """
    names = _shards(file)
    missing = [name for name in names if not (file.parent / name).is_file()]
    if missing:
        raise ValueError(f"{key}: {file} names {missing[0]}, which is not beside it: copy all {len(names)} shards.")
    return tuple(file.parent / name for name in names) or (file,)


def _shards(file: Path) -> list[str]:
    """The names that an index lists; none for another file."""
    if file.suffix != ".json":
        return []
    return sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))


def refuse_pickle(file: Path, *, key: str) -> None:
    """Raise ValueError for a file that can run code when it is read."""
    if file.suffix in PICKLES:
        raise ValueError(
            f"{key} {file} is a pickle, which can run code when it is read: save it as safetensors, with "
            "save_pretrained(..., safe_serialization=True) of what wrote it."
        )


def read_tensors(file: Path, *, key: str, values: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the notes in its header.

    Args:
        values: else only single numbers are read, and all other tensors are on the meta device, in float32.

    Raises:
        ValueError: the file cannot be read; names it and why.
    """
    refuse_pickle(file, key=key)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                shape = opened.get_slice(name).get_shape()
                whole = values or shape in ([], [1])
                tensors[name] = opened.get_tensor(name) if whole else torch.empty(shape, device="meta")
            return tensors, dict(opened.metadata() or {})
    except (OSError, SafetensorError) as problem:
        raise ValueError(f"{key} {file} cannot be read ({problem}): name a .safetensors file.") from None
