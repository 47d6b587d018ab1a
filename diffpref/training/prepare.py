"""Everything before the first step that can refuse a run, or claims its output directory.

The cheapest checks come first, so that a mistake costs seconds, not the hour that encoding takes.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml

from diffpref.backbones import Times
from diffpref.backbones.adapters import Adapter
from diffpref.backbones.adapters.base_adapters import parse
from diffpref.backbones.identity import BASE_FILE
from diffpref.backbones.times import limits
from diffpref.files import atomic
from diffpref.files.disk import require_space
from diffpref.path import GaussianPath
from diffpref.probes import ProbeChoice, StepBatch
from diffpref.run.checkpoint import find_checkpoint
from diffpref.run.done import MARKER, is_done
from diffpref.run.environment import describe
from diffpref.run.launcher import check_launcher
from diffpref.run.trackers import check_trackers
from diffpref.training.groups import Run
from diffpref.training.models import check_machine
from diffpref.training.rounds import Source
from diffpref.types import Objective

OUTPUTS = (
    MARKER,
    BASE_FILE,
    "checkpoint-*",
    "samples",
    "drift",
    "inversions",
    "metrics.jsonl",
    "report.html",
    "README.md",
    "evaluation.json",
    "*.safetensors",
    "unet",
    "transformer",
    "model_index.json",
    "pipeline.py",
    "scheduler",
)


def check_run(run: Run) -> list[str]:
    """The trackers to use; raises ValueError for what cannot work on this machine."""
    check_launcher(run.mixed_precision)
    check_machine(run)
    if run.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU: use bf16 or no on this machine.")
    return check_trackers(run.report_to)


def check_choices(objective: Objective, probe: ProbeChoice, source: Source, times: Times) -> None:
    """Raise ValueError where the source does not give what the objective and the probe take."""
    name, gives = type(objective).__name__, source.gives
    form = objective.candidates
    if form not in gives.forms:
        raise ValueError(
            f"{name} learns from {form.replace('_', ' ')}, and {type(source).__name__} gives "
            f"{' or '.join(gives.forms).replace('_', ' ')}: leave source out, and it follows from the objective."
        )
    if gives.batch is StepBatch and limits(times):
        raise ValueError(
            f"{' and '.join(limits(times))}: the steps of chains have levels of their own: use chain_steps, ddim_grid "
            "and timestep_fraction."
        )
    if probe.traits.takes is gives.batch:
        return
    if gives.batch is StepBatch:
        raise ValueError(f"{name} learns from the steps of the model's own chains: set probe: transition.")
    raise ValueError(
        f"probe: transition is for on-policy chains; {name} compares images here: set probe: forward or inversion, or "
        "source: on_policy."
    )


def check_levels(path: GaussianPath, probe: ProbeChoice) -> None:
    """Raise ValueError where an inversion would climb to a level at which the network's answer says nothing of eps."""
    noisiest = path.at_share(torch.ones(1))
    if probe.traits.runs_reference and not bool(path.eps_weight(noisiest).isfinite()):
        raise ValueError(
            "zero_terminal_snr leaves a last level without a picture, where epsilon cannot be inverted: set probe: "
            "forward, or zero_terminal_snr: false."
        )


def check_output(run: Run) -> Path | None:
    """The checkpoint to resume from, if any; touches nothing.

    Raises:
        ValueError: the output directory holds another run, is a file, or lacks the named checkpoint or disk space.
    """
    folder = run.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: choose a folder.")
    require_space(folder, 2**26, "a run")
    if run.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(folder, run.resume_from_checkpoint)
        if checkpoint is None and is_done(folder) and not run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a finished run without a checkpoint to continue from. Choose another --output_dir, "
                "or delete what it wrote with --overwrite_output_dir."
            )
        return checkpoint
    if (folder / "config.yaml").exists() and not run.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds another run. Continue it with --resume_from_checkpoint latest, choose another "
            "--output_dir, or delete what it wrote with --overwrite_output_dir."
        )
    return None


def claim_output(folder: Path) -> None:
    """Make the output directory this run's: what another run wrote there goes, but not the cache."""
    if (folder / "config.yaml").exists():
        for pattern in OUTPUTS:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def write_provenance(folder: Path, settings: Mapping[str, object], base: Mapping[str, object]) -> None:
    """config.yaml, environment.json and base.json in the output directory; a marker of an earlier end goes.

    Args:
        settings: the run's flat keys.
        base: some values of the network that is trained, as it is at the start.
    """
    (folder / MARKER).unlink(missing_ok=True)
    atomic.write_text(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    atomic.write_json(folder / "environment.json", describe())
    atomic.write_json(folder / BASE_FILE, dict(base))


IDENTITY = (
    *("adapter", "optimizer", "seed", "use_ema", "stored_reference"),
    *("proportion_empty_prompts", "encode_empty_prompt", "random_flip", "mirror_alone"),
)
"""Flat keys that must stay as they are for a checkpoint to be continued, besides those of the choices."""


def identity(
    settings: Mapping[str, object],
    choices: Sequence[str],
    adapter: Adapter,
    *,
    base_adapters: Sequence[str],
    base: str,
    data: str,
    effective_batch: int,
) -> dict[str, object]:
    """What must be the same for a checkpoint to be continued exactly.

    Args:
        settings: the run's flat keys.
        choices: the keys of objective, probe and times.
        base_adapters: the entries of that key.
        base: names the base model's weights.
        data: names the groups.
        effective_batch: groups of a step over all processes.
    """
    return {
        **{key: settings[key] for key in (*choices, *IDENTITY) if key in settings},
        **adapter.identity(),
        # By name, for the message; `base` tells their contents. Runs from before there were any had none.
        "base_adapters": [str(parse(entry)) for entry in base_adapters] or None,
        "base_model": base,
        "data": data,
        "effective_batch": effective_batch,
    }
