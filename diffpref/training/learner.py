"""What moves in a run: the trained weights with their optimizer, schedule and average."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from diffpref.backbones.adapters import Adapter, trainable
from diffpref.run.checkpoint import Average as Kept
from diffpref.run.checkpoint import State
from diffpref.training.groups import Average, Optimization
from diffpref.training.optimizers import Optimizer
from diffpref.training.schedule import build_schedule, effective_rate


@runtime_checkable
class MovingAverage(Kept, Protocol):
    """An average that follows the trained weights, and takes their place for a while."""

    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...

    def store(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...

    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...

    def restore(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The network and everything that an update moves."""

    accelerator: Accelerator
    network: torch.nn.Module
    adapter: Adapter
    parameters: Sequence[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    ema: MovingAverage | None
    max_norm: float

    @property
    def state(self) -> State:
        """What a checkpoint holds."""
        parts = {"optimizer": self.optimizer, "schedule": self.schedule}
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return State(self.network, self.adapter, parts, self.ema)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def update(self) -> Tensor | None:
        """Move the weights by the gradients that are there; returns the gradients' norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(list(self.parameters), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the averaged weights are in place of the trained ones, where there is an average."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def build_learner(
    network: torch.nn.Module,
    adapter: Adapter,
    accelerator: Accelerator,
    *,
    optimizer: Optimizer,
    optimization: Optimization,
    average: Average,
) -> Learner:
    """The learner of a network whose trained weights are marked."""
    parameters = trainable(network)
    rate = effective_rate(optimization, accelerator.num_processes)
    prepared = accelerator.prepare_optimizer(optimizer.build(parameters, rate))
    return Learner(
        accelerator=accelerator,
        network=network,
        adapter=adapter,
        parameters=parameters,
        optimizer=prepared,
        schedule=build_schedule(prepared, optimization),
        ema=_average(parameters, average) if average.use_ema else None,
        max_norm=optimization.max_grad_norm,
    )


def _average(parameters: Sequence[torch.nn.Parameter], settings: Average) -> MovingAverage:
    # Beside the average its file holds what many scripts of diffusers need, and a run without one does not.
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=settings.ema_decay)
