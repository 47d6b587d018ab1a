"""The settings of the engine that contradict each other or the rest."""

from diffpref.training.config import TrainConfig


def check_engine(config: TrainConfig) -> None:
    """Raise ValueError for settings of the engine that cannot work, before anything is read."""
    engine, comparison = config.engine, config.comparison
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
    if comparison.inversion_model == "policy":
        config.adapter.check_policy_inverts()
    if not engine.stored_reference:
        return
    if comparison.probe == "transition":
        raise ValueError(
            "stored_reference is for pictures; the steps of chains are drawn anew in every round: leave it out."
        )
    if comparison.inversion_model == "policy" or comparison.inversion_eta:
        raise ValueError(
            "stored_reference needs inversion_model: reference and inversion_eta: 0, for where the policy or fresh "
            "noise moves the latents, the reference's errors cannot be kept."
        )
    if comparison.stored_inversions not in (0, engine.stored_reference):
        raise ValueError(
            f"stored_inversions and stored_reference count the same draws: set both to one number, got "
            f"{comparison.stored_inversions} and {engine.stored_reference}."
        )
