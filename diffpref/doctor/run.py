"""What the doctor asks of a run's settings."""

from diffpref.backbones.adapters import Adapter
from diffpref.counting.steps import Setup
from diffpref.data.forms import form_of
from diffpref.doctor.architecture import architecture_of, text_tokens
from diffpref.doctor.needs import Asked, Needs, count_needs
from diffpref.engine.build import sizes
from diffpref.probes import ProbeChoice
from diffpref.training.config import TrainConfig
from diffpref.training.groups import Model, Optimization, Run
from diffpref.training.rounds import Source
from diffpref.types import Objective


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


def ask(config: TrainConfig) -> tuple[Needs, Asked]:
    """What the run needs, and what its settings ask of the plan.

    Raises:
        ValueError: an unknown architecture, or settings that it cannot be trained with.
    """
    needs = count_needs(
        setup_of(config.model, config.run, config.adapter, config.probe, config.data.resolution),
        config.adapter,
        method=type(config.objective).__name__,
        sizes=batch_of(config.optimization, config.objective, config.source),
        accumulation=config.optimization.gradient_accumulation_steps,
        state_bytes=config.optimizer.state_bytes,
        use_ema=config.average.use_ema,
        inversion=config.probe.cost(),
    )
    return needs, Asked(config.mode, config.run.gradient_checkpointing, config.engine.memory_budget_gib)
