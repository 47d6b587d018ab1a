"""Optimizers and learning-rate schedules by the names that the diffusers scripts use."""

import importlib.util
from collections.abc import Sequence

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LRScheduler

from diffpref.training.config import Optimization


def check_optimizer(settings: Optimization) -> None:
    """Raise ValueError for settings that cannot train, before anything is loaded."""
    positive = ("learning_rate", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "max_grad_norm")
    for name in positive:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(settings, name)}.")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(settings, name)}.")
    for name in ("adam_weight_decay", "adam_epsilon"):
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} must be 0 or above, got {getattr(settings, name)}.")
    if settings.lr_warmup_steps < 0:
        raise ValueError(f"lr_warmup_steps must be 0 or above, got {settings.lr_warmup_steps}.")
    if settings.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("optimizer adamw_8bit needs bitsandbytes: pip install 'diffpref[bitsandbytes]'.")


def build_optimizer(parameters: Sequence[torch.nn.Parameter], settings: Optimization, rate: float):
    """The optimizer over the parameters; `rate` is the learning rate after scaling."""
    adam = {
        "lr": rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.adam_weight_decay,
        "eps": settings.adam_epsilon,
    }
    if settings.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # As the official SDXL launcher: a fixed rate, no relative steps, updates clipped at 1.
        return Adafactor(
            parameters,
            lr=rate,
            weight_decay=settings.adam_weight_decay,
            clip_threshold=1.0,
            scale_parameter=False,
            relative_step=False,
        )
    if settings.optimizer == "adamw_8bit":
        import bitsandbytes  # type: ignore[import-not-found]

        return bitsandbytes.optim.AdamW8bit(parameters, **adam)
    return torch.optim.AdamW(parameters, **adam)


def build_schedule(optimizer: torch.optim.Optimizer, settings: Optimization) -> LRScheduler:
    """The learning-rate schedule in optimizer steps, stepped once for each, however many processes there are."""
    return get_scheduler(
        settings.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )


def effective_rate(settings: Optimization, processes: int) -> float:
    """The learning rate, times the effective batch where `scale_lr` asks for it."""
    batch = settings.train_batch_size * settings.gradient_accumulation_steps * processes
    return settings.learning_rate * (batch if settings.scale_lr else 1)
