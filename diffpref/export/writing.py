"""One export, from the names that a user gives to the file: everything is checked first, then written as a whole."""

from pathlib import Path

import torch

from diffpref.export.config import READER, Export, ExportConfig
from diffpref.export.opening import open_trained
from diffpref.export.target import Target
from diffpref.files import atomic
from diffpref.run.environment import versions

MARKER = "export.json"
"""In a folder that was written here: how, and that it may be replaced."""


def export(what: Export, target: Target) -> tuple[Path, list[str]]:
    """Write what the target reads; returns its place, and lines for the user.

    Raises:
        ValueError: what cannot be exported so, or a place that is taken; nothing is written then.
    """
    settings = READER.to_mapping(ExportConfig(what, target))
    if what.output is not None:
        _check_place(what.output, target, overwrite=what.overwrite)
    trained, lines = open_trained(what.runs, weights=what.weights, rank=what.rank, base=what.base)
    target.check(trained)
    place = what.output or Path(f"{trained.name}-{settings['to'].rpartition(':')[2]}{target.suffix}")
    _check_place(place, target, overwrite=what.overwrite)
    dtype: torch.dtype | None = getattr(torch, what.dtype) if what.dtype else None
    place.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix:
        with atomic.replacing(place) as file:
            lines += target.write(trained, file, dtype)
    else:
        with atomic.new_folder(place) as folder:
            lines += target.write(trained, folder, dtype)
            atomic.write_json(folder / MARKER, {**settings, "versions": versions()})
    return place, lines


def _check_place(place: Path, target: Target, *, overwrite: bool) -> None:
    """Raise ValueError where the place is taken, or is no name for what the target writes."""
    if target.suffix and place.suffix != target.suffix:
        raise ValueError(f"--output {place} must end in {target.suffix}: this target writes one file.")
    if not place.exists():
        return
    if place.is_dir() and (target.suffix or not (place / MARKER).is_file()):
        raise ValueError(f"--output {place} is a folder that no export has written: choose another place.")
    if not target.suffix and place.is_file():
        raise ValueError(f"--output {place} is a file, and this target writes a folder: choose another place.")
    if not overwrite:
        raise ValueError(f"{place} is there already: choose another --output, or replace it with --overwrite.")
