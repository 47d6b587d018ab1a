"""Everything before the first step that can refuse a run, or claims its output directory.

The cheapest checks come first, so that a mistake costs seconds, not the hour that encoding takes.
"""

import shutil
from pathlib import Path

import torch

from diffpref.backbones import Family
from diffpref.data.encode import EncodedPreferences
from diffpref.files import atomic
from diffpref.files.disk import require_space
from diffpref.probes import StepBatch
from diffpref.run.checkpoint import find_checkpoint
from diffpref.run.environment import describe
from diffpref.run.trackers import check_trackers
from diffpref.settings.bounds import check
from diffpref.settings.record import fields_of
from diffpref.sources.chains import EncodedChains
from diffpref.sources.dataset import candidates_of
from diffpref.training.config import TrainConfig
from diffpref.training.models import Models, check_machine
from diffpref.training.settings import to_mapping

OUTPUTS = (
    "checkpoint-*",
    "samples",
    "inversions",
    "metrics.jsonl",
    "report.html",
    "README.md",
    "evaluation.json",
    "*.safetensors",
    "unet",
    "transformer",
)


def check_settings(config: TrainConfig) -> list[str]:
    """The trackers to use; raises ValueError for settings that cannot work, before anything is read."""
    check(config)
    config.optimizer.check()
    if not config.data.dataset_name:
        raise ValueError("dataset_name is empty: give a file, a folder or a data set on the hub.")
    if not 0 <= config.data.proportion_empty_prompts <= 1:
        raise ValueError(f"proportion_empty_prompts must be in [0, 1], got {config.data.proportion_empty_prompts}.")
    steps = candidates_of(config) == "chain_pairs"
    if steps != (config.probe.traits.takes is StepBatch):
        name = type(config.objective).__name__
        raise ValueError(
            f"{name} learns from the steps of the model's own chains: set probe: transition."
            if steps
            else f"probe: transition is for D3PO's chains; {name} compares pictures: set probe: forward or inversion."
        )
    counts = {
        "checkpointing_steps": config.run.checkpointing_steps,
        "checkpoints_total_limit": config.run.checkpoints_total_limit,
        "logging_steps": config.run.logging_steps,
        "validation_steps": config.validation.validation_steps,
        "validation_batch_size": config.validation.validation_batch_size,
        "num_inference_steps": config.validation.num_inference_steps,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or above, got {value}.")
    check_machine(config.run)
    if config.run.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU: use bf16 or no on this machine.")
    return check_trackers(config.run.report_to)


def check_family(config: TrainConfig, family: Family) -> None:
    """Raise ValueError for settings that this backbone cannot work with."""
    config.adapter.check(family)


def check_output(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, if any; touches nothing.

    Raises:
        ValueError: the output directory holds another run, is a file, or lacks the named checkpoint or disk space.
    """
    folder, run = config.run.output_dir, config.run
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: choose a folder.")
    require_space(folder, 2**26, "a run")
    if run.resume_from_checkpoint is not None:
        found = find_checkpoint(folder, run.resume_from_checkpoint)
        if found is None and (folder / "README.md").exists() and not run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a finished run without a checkpoint to continue from. Choose another --output_dir, "
                "or delete what it wrote with --overwrite_output_dir."
            )
        return found
    if (folder / "config.yaml").exists() and not run.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds another run. Continue it with --resume_from_checkpoint latest, choose another "
            "--output_dir, or delete what it wrote with --overwrite_output_dir."
        )
    return None


def claim_output(config: TrainConfig) -> None:
    """Make the output directory this run's: what another run wrote there goes, but not the cache."""
    folder = config.run.output_dir
    if (folder / "config.yaml").exists():
        for pattern in OUTPUTS:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def write_provenance(config: TrainConfig) -> None:
    """config.yaml and environment.json in the output directory."""
    import yaml

    folder = config.run.output_dir
    atomic.write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    atomic.write_json(folder / "environment.json", describe())


def identity(
    config: TrainConfig, models: Models, data: EncodedPreferences | EncodedChains, processes: int
) -> dict[str, object]:
    """What must be the same for a checkpoint to be continued exactly."""
    flat, batch = to_mapping(config), config.optimization
    keys = ("objective", *fields_of(config.objective))
    keys += ("adapter", "optimizer", "seed", "use_ema")
    keys += ("proportion_empty_prompts", "random_flip")
    keys += ("probe", *fields_of(config.probe), *fields_of(config.times))
    keys += ("stored_reference",)
    effective = batch.train_batch_size * batch.gradient_accumulation_steps * processes
    return {
        **{key: flat[key] for key in keys if key in flat},
        **config.adapter.identity(),
        "base_model": models.base_hash,
        "data": data.fingerprint,
        "effective_batch": effective,
    }
