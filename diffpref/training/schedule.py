"""Learning rates: their schedules by the names that the diffusers scripts use, and their scaling by the batch."""

import math
from dataclasses import replace

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
        num_training_steps=steps_of(settings),
    )


def check_length(settings: Optimization) -> None:
    """Raise ValueError where not exactly one of steps and epochs says how long the run is."""
    steps, epochs = settings.max_train_steps, settings.num_train_epochs
    if (steps is None) == (epochs is None):
        raise ValueError(f"give either max_train_steps or num_train_epochs, got {steps} and {epochs}.")


def steps_of(settings: Optimization) -> int:
    """The steps of a run whose settings say so, or have been `counted`."""
    assert settings.max_train_steps is not None, "epochs are counted as steps once the data are read"
    return settings.max_train_steps


def counted(settings: Optimization, *, groups: int, processes: int) -> Optimization:
    """The settings with max_train_steps in the place of num_train_epochs: the steps that see each group as often.

    The last step may begin another epoch. Settings that say steps stay as they are.

    Args:
        groups: that the run learns from.
    """
    if settings.num_train_epochs is None:
        return settings
    batch = settings.train_batch_size * settings.gradient_accumulation_steps * processes
    steps = math.ceil(round(settings.num_train_epochs * groups / batch, 6))
    return replace(settings, max_train_steps=max(1, steps), num_train_epochs=None)


def effective_rate(settings: Optimization, processes: int) -> float:
    """The learning rate, times the effective batch where `scale_lr` asks for it."""
    batch = settings.train_batch_size * settings.gradient_accumulation_steps * processes
    return settings.learning_rate * (batch if settings.scale_lr else 1)
