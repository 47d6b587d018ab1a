"""What a run has written, as one flat mapping of names to numbers, words and hashes: all that must not change.

Left out are clocks, memory, and what says where and by which commit a run was made.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors import safe_open

Entry = tuple[str, Any]
CLOCKS = ("seconds_per_step", "peak_memory_gib", "seconds")
"""Keys of JSON files that hold times or memory."""
SKIPPED = re.compile(r"environment\.json|report\.html|.*\.lock|\.hashes\.json")
"""Files whose content is not compared: pages of figures that stand in other files, and notes on the machine."""
RANDOM_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
"""Shards of a cache have random names; which tensor lies in which shard does not matter."""


def read_outputs(folder: Path, hide: Mapping[str, str]) -> dict[str, Any]:
    """Everything to compare in a folder, as `kind/file/name` -> value.

    Args:
        hide: texts that differ from machine to machine, such as paths, and what stands in their place.
    """
    found: dict[str, Any] = {}
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = RANDOM_NAME.sub("*.safetensors", path.relative_to(folder).as_posix())
            names.append(name)
            found.update((f"{name}: {key}", clean(value, hide)) for key, value in _entries(path))
    return {"files": sorted(set(names)), **found}


def clean(value: Any, hide: Mapping[str, str]) -> Any:
    """The value with the texts of `hide` replaced."""
    if isinstance(value, str):
        for text, word in hide.items():
            value = value.replace(text, word)
    return [clean(item, hide) for item in value] if isinstance(value, list) else value


def _entries(path: Path) -> Iterator[Entry]:
    """Name and value of each thing in a file, by its kind."""
    if SKIPPED.fullmatch(path.name):
        return
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, of_tensor(file.get_tensor(name))
    elif path.suffix == ".pt":
        yield from flat(torch.load(path, map_location="cpu", weights_only=True))
    elif path.suffix == ".json":
        yield from flat(json.loads(path.read_text(encoding="utf-8")))
    elif path.suffix == ".jsonl":
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            yield from flat(line, f"step {line['step']}." if "step" in line else "")
    elif path.suffix == ".yaml":
        yield from flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            yield f"pixels {picture.mode} {picture.size}", digest(picture.tobytes())
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        for name in table.column_names:
            yield (
                f"column {name} {table.schema.field(name).type}",
                digest(repr(table.column(name).to_pylist()).encode()),
            )
    elif path.suffix in (".md", ".txt", ".log"):
        yield "text", path.read_text(encoding="utf-8").splitlines()
    else:
        yield "bytes", digest(path.read_bytes())


def flat(value: Any, name: str = "") -> Iterator[Entry]:
    """The leaves of nested mappings and lists by their dotted names; tensors by their hashes, clocks not at all."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in CLOCKS:
                yield from flat(item, f"{name}{key}.")
    elif isinstance(value, list | tuple) and not all(isinstance(item, int | float | str) for item in value):
        for place, item in enumerate(value):
            yield from flat(item, f"{name}{place}.")
    elif isinstance(value, torch.Tensor):
        yield name.rstrip("."), of_tensor(value)
    else:
        yield name.rstrip("."), list(value) if isinstance(value, tuple) else value


def of_tensor(tensor: torch.Tensor) -> str:
    """Type, shape and hash of a tensor."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest(data)}"


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
