"""A run's output directory: whose it is, what another run left there, and what says how the run was made."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpref.files import atomic
from diffpref.run.checkpoint import find_checkpoint
from diffpref.run.done import MARKER
from diffpref.run.environment import describe

SETTINGS = "config.yaml"


def checkpoint_to_continue(folder: Path, name: str | None, *, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, if any; touches nothing.

    Args:
        name: `latest`, a checkpoint's name, or None for a run from the start.
        overwrite: whether what another run wrote may be deleted.

    Raises:
        ValueError: no such checkpoint, or the folder holds another run.
    """
    if name is not None:
        return find_checkpoint(folder, name)
    if (folder / SETTINGS).exists() and not overwrite:
        raise ValueError(
            f"{folder} holds another run. Continue it with --resume_from_checkpoint latest, choose another "
            "--output_dir, or delete what it wrote with --overwrite_output_dir."
        )
    return None


def claim(folder: Path, settings: Mapping[str, Any], outputs: Sequence[str], *, fresh: bool) -> None:
    """Make the folder this run's, no longer finished, and write config.yaml and environment.json.

    Args:
        settings: the run's flat settings.
        outputs: patterns of the files and folders that a run writes.
        fresh: whether what another run wrote there goes; not so where a checkpoint of it is continued."""
    import yaml

    if fresh and (folder / SETTINGS).exists():
        for path in [path for pattern in outputs for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    atomic.write_text(folder / SETTINGS, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    atomic.write_json(folder / "environment.json", describe())
