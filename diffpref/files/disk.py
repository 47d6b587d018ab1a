"""The room on a disk."""

import shutil
from pathlib import Path


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise ValueError where the disk of `folder` has less than `needed` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{folder}: {purpose} needs about {needed / 2**30:.2f} GiB, the disk has {free / 2**30:.2f} GiB free. "
            "Free some space, or choose another disk with --output_dir or --cache_dir."
        )
