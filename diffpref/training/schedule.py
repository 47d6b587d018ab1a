"""Learning rates: their schedules by the names that the diffusers scripts use, and their scaling by the batch."""

import torch
from torch.optim.lr_scheduler import LRScheduler

from diffpref.training.groups import Optimization


def build_schedule(optimizer: torch.optim.Optimizer, settings: Optimization) -> LRScheduler:
    """The learning-rate schedule in optimizer steps, stepped once for each, however many processes there are."""
    # Here, so that the settings of a run are read without loading diffusers.
    from diffusers.optimization import get_scheduler

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
