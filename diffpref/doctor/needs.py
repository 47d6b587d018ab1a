"""What a training run needs: bytes of weights, gradients, optimizer and activations, FLOPs, and the mode that fits."""

from dataclasses import dataclass, replace

from diffpref.backbones.adapters import Adapter
from diffpref.counting.kept import Facts, facts
from diffpref.counting.steps import Setup
from diffpref.data.forms import form_of
from diffpref.doctor.architecture import architecture_of, text_tokens
from diffpref.engine.build import sizes
from diffpref.engine.memory import GIB, KEPT_FREE
from diffpref.engine.modes import MODES, Auto, Mode, Work
from diffpref.engine.modes.base import TRANSIENT
from diffpref.engine.plan import Plan, choose
from diffpref.probes import ProbeChoice
from diffpref.run.precision import PRECISIONS
from diffpref.training.config import TrainConfig
from diffpref.training.groups import Model, Optimization, Run
from diffpref.training.rounds import Source
from diffpref.types import Objective


@dataclass(frozen=True)
class Way:
    """One way to compute a step."""

    name: str
    checkpointing: bool
    bytes: int
    """Graphs and scratches at the peak, one candidate in a graph where the mode cuts."""
    flops: int
    """Of one group: reference, forward and backward."""
    launches: int
    """Operators of one batch."""


@dataclass(frozen=True)
class Needs:
    """What a run needs, in bytes unless said otherwise."""

    model: str
    method: str
    resolution: int
    groups: int
    candidates: int
    """In a group."""
    accumulation: int
    parameters: int
    trained: int
    weights: int
    adapter: int
    reference: int
    gradients: int
    optimizer: int
    ema: int
    modes: tuple[Way, ...]
    work: Work
    inversion: str
    """Forwards that the probe adds, for people; empty where it adds none."""

    @property
    def resident(self) -> int:
        """All that is held whatever the mode."""
        return self.weights + self.adapter + self.reference + self.gradients + self.optimizer + self.ema


def setup_of(model: Model, run: Run, adapter: Adapter, probe: ProbeChoice, resolution: int) -> Setup:
    """What the counts of a run depend on, without checkpointing."""
    architecture = architecture_of(model)
    return Setup(
        architecture,
        resolution,
        adapter.counted(),
        precision=run.mixed_precision,
        text_tokens=text_tokens(architecture, model.max_sequence_length),
        guidance=probe.traits.guidance,
    )


def batch_of(optimization: Optimization, objective: Objective, source: Source) -> tuple[int, int, int]:
    """As the engine's `sizes`: groups, images of a group, and those of a batch where its groups are cut."""
    return sizes(
        optimization.train_batch_size,
        form_of(objective).usual,
        chains=source.gives.together,
        accumulation=optimization.gradient_accumulation_steps,
    )


def needs_of(config: TrainConfig) -> Needs:
    """What the run needs; counting a full-size network that is not built in takes about a minute.

    Raises:
        ValueError: an unknown architecture, or settings that it cannot be trained with.
    """
    setup = setup_of(config.model, config.run, config.adapter, config.probe, config.data.resolution)
    groups, k, alone = batch_of(config.optimization, config.objective, config.source)
    found = {
        checkpointing: facts(replace(setup, checkpointing=checkpointing), groups, k) for checkpointing in (False, True)
    }
    plain, adapter = found[False], config.adapter
    precision = PRECISIONS[config.run.mixed_precision]
    kept = (plain.trained if adapter.added else 0) * 4
    modes = tuple(
        _mode(name, checkpointing, found[checkpointing], groups, k, kept) for checkpointing in found for name in MODES
    )
    return Needs(
        model=setup.architecture.name,
        method=type(config.objective).__name__,
        resolution=config.data.resolution,
        groups=groups,
        candidates=k,
        accumulation=1 if alone else config.optimization.gradient_accumulation_steps,
        parameters=plain.parameters,
        trained=plain.trained,
        weights=plain.parameters * adapter.base_dtype(precision).itemsize,
        adapter=kept,
        reference=adapter.reference_bytes(plain.parameters, precision),
        gradients=plain.trained * 4,
        optimizer=plain.trained * config.optimizer.state_bytes,
        ema=plain.trained * 4 if config.average.use_ema else 0,
        modes=modes,
        work=Work(
            candidate=plain.candidate,
            checkpointed=found[True].candidate,
            gradient=plain.trained * 4,
            groups=groups,
            k=k,
            cheap_scratch=adapter.added,
            batch=alone,
        ),
        inversion=config.probe.cost(),
    )


def _mode(name: str, checkpointing: bool, found: Facts, groups: int, k: int, kept: int) -> Way:
    count = found.step(name, groups, k)
    graphs = max(count.peak_bytes - kept - 4 * found.trained, 0)
    return Way(name, checkpointing, graphs, count.flops // groups, count.launches)


@dataclass(frozen=True)
class Asked:
    """What the settings ask of the plan."""

    mode: Mode | Auto
    checkpointing: bool
    budget_gib: float = 0.0
    """For graphs and scratches; 0 takes what is free."""


def plan_for(needs: Needs, gpu: float, asked: Asked) -> Plan:
    """The plan that training would make on a GPU of `gpu` GiB with nothing else on it.

    Raises:
        ValueError: a mode that is asked for and that cannot fit.
    """
    free = gpu * GIB - needs.weights - needs.adapter - needs.reference - needs.ema
    budget = asked.budget_gib * GIB or free * (1 - KEPT_FREE) - needs.gradients - needs.optimizer
    return choose(asked.mode, needs.work, checkpointing=asked.checkpointing, budget=max(int(budget), 0))


def largest_graph(needs: Needs, budget: int, *, checkpointing: bool) -> int:
    """The most candidates whose graph fits the budget, by the rule of `auto`; scratches not counted."""
    one = needs.work.checkpointed if checkpointing else needs.work.candidate
    assert one is not None
    return int(budget // (TRANSIENT * one))
