"""What a training run needs: bytes of weights, gradients, optimizer and activations, FLOPs, and the mode that fits."""

from dataclasses import dataclass, replace

from diffpref.backbones.adapters import Adapter
from diffpref.counting.kept import Facts, facts
from diffpref.counting.steps import Setup
from diffpref.engine.memory import GIB, KEPT_FREE
from diffpref.engine.modes import MODES, Auto, Mode, Work
from diffpref.engine.modes.base import TRANSIENT
from diffpref.engine.plan import Plan, choose
from diffpref.run.precision import PRECISIONS


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


def count_needs(
    setup: Setup,
    adapter: Adapter,
    *,
    method: str,
    sizes: tuple[int, int, int],
    accumulation: int,
    state_bytes: int,
    use_ema: bool,
    inversion: str,
) -> Needs:
    """What the run needs; counting a full-size network that is not built in takes about a minute.

    Args:
        setup: without checkpointing.
        sizes: as the engine's function `sizes` gives them.
        state_bytes: of the optimizer for each trained weight.
        inversion: forwards that the probe adds, for people.
    """
    groups, k, alone = sizes
    found = {
        checkpointing: facts(replace(setup, checkpointing=checkpointing), groups, k) for checkpointing in (False, True)
    }
    plain, precision = found[False], PRECISIONS[setup.precision]
    kept = (plain.trained if adapter.added else 0) * 4
    return Needs(
        model=setup.architecture.name,
        method=method,
        resolution=setup.resolution,
        groups=groups,
        candidates=k,
        accumulation=1 if alone else accumulation,
        parameters=plain.parameters,
        trained=plain.trained,
        weights=plain.parameters * adapter.base_dtype(precision).itemsize,
        adapter=kept,
        reference=adapter.reference_bytes(plain.parameters, precision),
        gradients=plain.trained * 4,
        optimizer=plain.trained * state_bytes,
        ema=plain.trained * 4 if use_ema else 0,
        modes=tuple(_way(name, on, found[on], groups, k, kept) for on in found for name in MODES),
        work=Work(
            candidate=plain.candidate,
            checkpointed=found[True].candidate,
            gradient=plain.trained * 4,
            groups=groups,
            k=k,
            cheap_scratch=adapter.added,
            batch=alone,
        ),
        inversion=inversion,
    )


def _way(name: str, checkpointing: bool, found: Facts, groups: int, k: int, kept: int) -> Way:
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
