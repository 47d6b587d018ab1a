"""What the doctor asks of a run's settings."""

from diffpref.counting.steps import Setup
from diffpref.data.forms import form_of
from diffpref.doctor.architecture import architecture_of, text_tokens
from diffpref.doctor.needs import Asked, Needs, count_needs
from diffpref.engine.build import sizes
from diffpref.training.config import TrainConfig


def setup_of(config: TrainConfig) -> Setup:
    """What the counts of a run depend on, without checkpointing."""
    architecture = architecture_of(config)
    return Setup(
        architecture,
        config.data.resolution,
        config.adapter.counted(),
        precision=config.run.mixed_precision,
        text_tokens=text_tokens(config, architecture),
        guidance=config.probe.traits.guidance,
    )


def batch_of(config: TrainConfig) -> tuple[int, int, int]:
    """As the engine's `sizes`: groups, pictures of a group, and those of a batch where its groups are cut."""
    batch = config.optimization
    return sizes(
        batch.train_batch_size,
        form_of(config.objective).usual,
        chains=config.source.gives.together,
        accumulation=batch.gradient_accumulation_steps,
    )


def needs_of(config: TrainConfig) -> Needs:
    """What the run needs.

    Raises:
        ValueError: an unknown architecture, or settings that it cannot be trained with.
    """
    return count_needs(
        setup_of(config),
        config.adapter,
        method=type(config.objective).__name__,
        sizes=batch_of(config),
        accumulation=config.optimization.gradient_accumulation_steps,
        state_bytes=config.optimizer.state_bytes,
        use_ema=config.average.use_ema,
        inversion=config.probe.cost(),
    )


def asked_of(config: TrainConfig) -> Asked:
    """What the settings ask of the plan."""
    return Asked(config.mode, config.run.gradient_checkpointing, config.engine.memory_budget_gib)
