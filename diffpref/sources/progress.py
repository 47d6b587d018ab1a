"""Whose folder the rounds run in: the settings they began with, so that going on never mixes two runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import yaml

from diffpref.files import atomic
from diffpref.training.config import TrainConfig
from diffpref.training.prepare import OUTPUTS
from diffpref.training.settings import to_mapping

FREE = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "rounds", "report_to", "tracker_name")
"""Settings that may change between a start and the next."""


def claim(config: TrainConfig, *, main: bool) -> Path:
    """The output directory of the rounds, new or of the same settings; the main process writes config.yaml there.

    Raises:
        ValueError: it holds rounds of other settings, or is a file; names what differs.
    """
    folder = config.run.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: choose a folder.")
    kept, now = folder / "config.yaml", to_mapping(config)
    if kept.is_file() and config.run.overwrite_output_dir:
        if main:
            for path in (
                *folder.glob("round-*"),
                *folder.glob("self_play.json"),
                *(p for pattern in OUTPUTS for p in folder.glob(pattern)),
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif kept.is_file() and any(folder.glob("round-*")):
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        differ = [key for key in now if key not in FREE and before.get(key) != now[key]]
        if differ:
            lines = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in differ)
            raise ValueError(
                f"{folder} holds rounds of other settings: {lines}. Use those, choose another --output_dir, or delete "
                "what was written with --overwrite_output_dir."
            )
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(kept, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))
    return folder


def round_settings(config: TrainConfig, number: int) -> TrainConfig:
    """The settings of one round's training: its own folder and seed, going on where it was stopped."""
    folder = config.run.output_dir / f"round-{number}" / "train"
    resume = "latest" if (folder / "config.yaml").is_file() else None
    run = replace(
        config.run,
        output_dir=folder,
        seed=config.run.seed + number - 1,
        resume_from_checkpoint=resume,
        overwrite_output_dir=False,
    )
    return replace(config, run=run)
