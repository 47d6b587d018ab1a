"""Latents and text embeddings, encoded once: keyed by content, kept in safetensors shards, safe to interrupt.

A key is a hash of everything that the tensors depend on (picture bytes, model weights, size, crop, flip, dtype), so a
cache folder can be shared by any runs and never goes stale.
"""

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffpref.files import atomic

SHARD_BYTES = 64 * 2**20


class TensorStore:
    """A folder of safetensors shards that maps a key to named tensors.

    `add` collects tensors in memory and writes a shard whenever enough are there, under a temporary name first: a
    process that is killed loses that shard and nothing else. Several processes may write to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._where: dict[str, dict[str, Path]] = {}
        self._open: dict[Path, safe_open] = {}
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the index again: other processes may have written."""
        self._where.clear()
        for shard in sorted(self.folder.glob("*.safetensors")):
            for full in self._shard(shard).keys():
                key, name = full.split("/", 1)
                self._where.setdefault(key, {})[name] = shard

    def _shard(self, shard: Path) -> safe_open:
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(shard, framework="pt")
            except (SafetensorError, OSError) as problem:
                raise ValueError(
                    f"{shard}: this cache file is damaged ({problem}). Delete it; it is made again."
                ) from None
        return self._open[shard]

    def __contains__(self, key: str) -> bool:
        return key in self._where or key in self._pending

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of a key; KeyError where there is none."""
        if key in self._pending:
            return dict(self._pending[key])
        return {name: self._shard(shard).get_tensor(f"{key}/{name}") for name, shard in self._where[key].items()}

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors under the key."""
        for name, tensor in tensors.items():
            # A packed copy: a slice would be saved with its whole batch, and channels-last latents not at all.
            copied = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            self._pending.setdefault(key, {})[name] = copied
            self._pending_bytes += copied.numel() * copied.element_size()
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what `add` collected."""
        if not self._pending:
            return
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic.replacing(shard) as temporary:
            save_file(
                {f"{key}/{name}": t for key, parts in self._pending.items() for name, t in parts.items()}, temporary
            )
        for key, parts in self._pending.items():
            self._where.setdefault(key, {}).update(dict.fromkeys(parts, shard))
        self._pending, self._pending_bytes = {}, 0

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not there, each once, in their first order."""
        return [key for key in dict.fromkeys(keys) if key not in self]
