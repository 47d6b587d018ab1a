"""The settings of the engine that contradict each other or the rest."""

from diffpref.training.config import TrainConfig


def check_engine(config: TrainConfig) -> None:
    """Raise ValueError for settings of the engine that cannot work, before anything is read."""
    engine = config.engine
    for name, least in (("micro_batch", 0), ("reference_batch", 0), ("stored_reference", 0)):
        if getattr(engine, name) < least:
            raise ValueError(f"{name} must be {least} or above, got {getattr(engine, name)}.")
    if not engine.memory_budget_gib >= 0:
        raise ValueError(f"memory_budget_gib must be 0 or above, got {engine.memory_budget_gib}.")
    if engine.micro_batch and engine.loss_mode == "joint":
        raise ValueError(
            f"micro_batch is for loss_mode deferred and two-pass, got {engine.micro_batch} with joint, whose graph is "
            "a whole batch: leave it out, or lower train_batch_size."
        )
    if config.probe.traits.runs_policy:
        config.adapter.check_policy_inverts()
    if engine.stored_reference:
        config.probe.check_stored(engine.stored_reference)
