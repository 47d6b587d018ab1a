"""What a reward's run needs before its first step: settings that can work, its identity, its optimizer."""

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator

from diffpref.backbones.adapters import trainable
from diffpref.rewards.training.config import RewardConfig
from diffpref.rewards.training.data import PairData
from diffpref.rewards.training.model import PairScorer
from diffpref.rewards.training.settings import to_mapping
from diffpref.run.trackers import check_trackers
from diffpref.settings.bounds import check
from diffpref.training.schedule import build_schedule, effective_rate


def check_settings(config: RewardConfig) -> list[str]:
    """The trackers to use; raises ValueError for settings that cannot work, before anything is read."""
    check(config)
    config.optimizer.check()
    for name in ("pretrained_model_name_or_path", "dataset_name"):
        if not to_mapping(config)[name]:
            raise ValueError(f"{name} is empty: name a folder, a file or something on the hub.")
    counts = ("rank", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps")
    for name in (*counts, "validation_batch_size", "max_train_samples", "max_validation_samples"):
        value = to_mapping(config)[name]
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or above, got {value}.")
    if config.pairs.dataloader_num_workers < 0:
        raise ValueError(f"dataloader_num_workers must be 0 or above, got {config.pairs.dataloader_num_workers}.")
    return check_trackers(config.run.report_to)


def identity(config: RewardConfig, base_hash: str, data: PairData, processes: int) -> dict[str, object]:
    """What must be the same for a checkpoint to be continued exactly."""
    batch = config.optimization
    return {
        **dataclasses.asdict(config.criterion),
        **dataclasses.asdict(config.tuning),
        "optimizer": to_mapping(config)["optimizer"],
        "seed": config.run.seed,
        "base_model": base_hash,
        "data": data.fingerprint,
        "effective_batch": batch.train_batch_size * batch.gradient_accumulation_steps * processes,
    }


def build_parts(network: PairScorer, config: RewardConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Optimizer, schedule, the gradient scaler of fp16, and the one trained tensor that an adapter does not hold.

    Raises:
        ValueError: nothing is trained.
    """
    trained = trainable(network)
    if not trained:
        raise ValueError("nothing is trained: raise trained_vision_layers or trained_text_layers, or use adapter lora.")
    decayed = [p for p in trained if p.ndim > 1 or config.tuning.decay_vectors]
    others = [p for p in trained if p.ndim <= 1 and not config.tuning.decay_vectors]
    rate = effective_rate(config.optimization, accelerator.num_processes)
    groups = [{"params": decayed}] * bool(decayed) + [{"params": others, "weight_decay": 0.0}] * bool(others)
    prepared = accelerator.prepare_optimizer(config.optimizer.build(groups, rate))
    parts = {"optimizer": prepared, "schedule": build_schedule(prepared, config.optimization)}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    parts["logit_scale"] = torch.nn.ParameterList([network.clip.logit_scale])
    return parts
