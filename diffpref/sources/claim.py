"""A folder that holds several rounds: the settings they began with, so that going on never mixes two runs."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from diffpref.files import atomic
from diffpref.run.done import MARKER
from diffpref.training.prepare import OUTPUTS

FREE = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "rounds", "report_to", "tracker_name"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)
"""Settings that may change between a start and the next."""


def claim(folder: Path, settings: Mapping[str, object], *, overwrite: bool, main: bool) -> Path:
    """The folder of the rounds, new or of the same settings; the main process writes config.yaml there.

    Args:
        settings: the run's flat keys.
        overwrite: delete what another run left there.

    Raises:
        ValueError: it holds rounds of other settings, or is a file; names what differs.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: choose a folder.")
    kept = folder / "config.yaml"
    if kept.is_file() and overwrite:
        if main:
            _clear(folder)
    elif kept.is_file() and any(folder.glob("round-*")):
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        differ = [key for key in settings if key not in FREE and before.get(key) != settings[key]]
        if differ:
            lines = "; ".join(f"{key} was {before.get(key)!r}, is {settings[key]!r}" for key in differ)
            raise ValueError(
                f"{folder} holds rounds of other settings: {lines}. Use those, choose another --output_dir, or delete "
                "what was written with --overwrite_output_dir."
            )
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        atomic.write_text(kept, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    return folder


def _clear(folder: Path) -> None:
    for pattern in ("round-*", "self_play.json", *OUTPUTS):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
