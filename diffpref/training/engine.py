"""A run's plan and engine: what the settings, the backbone and the models say, as the values that the engine takes."""

from contextlib import nullcontext
from dataclasses import asdict

import torch
from accelerate import Accelerator

from diffpref.backbones import Family
from diffpref.backbones.adapters import Streamed
from diffpref.backbones.guidance import guided
from diffpref.engine import build
from diffpref.engine.plan import Plan
from diffpref.engine.step import Engine
from diffpref.engine.stored import StoredErrors, attention_of, open_store, path_identity
from diffpref.probes import AnyBatch, Stage, StepBatch
from diffpref.training.config import TrainConfig
from diffpref.training.models import Models
from diffpref.training.settings import to_mapping
from diffpref.types import Cond, Probe


def sizes_of(config: TrainConfig, b: int, k: int) -> tuple[int, int, int]:
    """As the engine's `sizes`, for b groups of k: only the pairs of chains belong together beyond their group."""
    chains = config.rounds.chains_per_prompt if config.probe.traits.takes is StepBatch else 0
    return build.sizes(b, k, chains=chains, accumulation=config.optimization.gradient_accumulation_steps)


def plan_of(
    config: TrainConfig,
    family: Family,
    accelerator: Accelerator,
    models: Models,
    batch: AnyBatch,
    empty: Cond,
    *,
    kept: Plan | None,
) -> Plan:
    """The plan of a run, from a batch on the device; see `make_plan`."""
    x0 = batch.candidates.x0[:1, :1]
    cond = family.group_cond(batch.candidates.cond, config.data.resolution)
    one = {name: value[:1] for name, value in cond.items()}
    return build.make_plan(
        config.mode,
        accelerator,
        network=models.network,
        policy=guided(family.backbone(models.network), config.probe.traits.guidance, empty),
        example=Probe(x0, x0, batch.t[:1], torch.ones(1, device=x0.device), one),
        sizes=sizes_of(config, *batch.candidates.scores.shape),
        cheap_scratch=config.adapter.added,
        state_bytes=config.optimizer.state_bytes,
        budget_gib=config.engine.memory_budget_gib,
        kept=kept,
    )


def stored_errors(config: TrainConfig, family: Family, models: Models, accelerator: Accelerator) -> StoredErrors | None:
    """The reference's errors that earlier epochs and runs have kept, where the settings keep them."""
    if not config.engine.stored_reference:
        return None
    flat = to_mapping(config)
    base = asdict(family.checkpoint)
    weights = base.pop("network_weights")
    what = {
        "base": base,
        "network_weights": str(weights),
        "probe": dict(config.probe.identity()),
        "path": path_identity(family.path, family.loss_weight),
    }
    how = {
        "weights": models.base_hash,
        "adapter": flat["adapter"],
        "reference_memory": flat.get("reference_memory", "resident"),
        "mixed_precision": config.run.mixed_precision,
        "allow_tf32": config.run.allow_tf32,
        "attention": attention_of(models.network),
        "device": accelerator.device.type,
    }
    root = (config.data.cache_dir or config.run.output_dir / "cache") / "reference"
    return open_store(root, what, how, main=accelerator.is_main_process)


def engine_of(
    config: TrainConfig,
    family: Family,
    accelerator: Accelerator,
    models: Models,
    plan: Plan,
    *,
    empty: Cond,
    identity: str,
    streamed: Streamed | None,
    stored: StoredErrors | None,
    scores: torch.Tensor,
) -> Engine:
    """The engine that follows the plan.

    Args:
        empty: the unconditional prompt, for guidance in the loss.
        identity: of the run, which its stored inversions depend on.
        scores: of a batch, on which the objective is tried.
    """
    traits = config.probe.traits
    bare, wrapped, reference = (
        guided(model, traits.guidance, empty)
        for model in (family.backbone(models.network), models.policy, models.reference)
    )
    stage = Stage(
        policy=wrapped,
        reference=reference,
        weight=family.loss_weight,
        rule=family.step,
        seed=config.run.seed,
        identity=identity,
        folder=config.run.output_dir / "inversions",
    )
    # Weights that are streamed come in once for the whole window, which also holds all pairs of a chain's step.
    whole = streamed is not None or traits.takes is StepBatch
    return build.build_engine(
        plan,
        accelerator,
        network=models.network,
        prepared=models.prepared,
        policy=bare,
        wrapped=wrapped,
        reference=reference,
        objective=config.objective,
        scores=scores,
        prober=config.probe.build(stage),
        cond=lambda prompts: family.group_cond(prompts, config.data.resolution),
        reference_batch=config.engine.reference_batch,
        window=config.optimization.gradient_accumulation_steps if whole else 0,
        inverts=traits.runs_reference,
        loaded=nullcontext if streamed is None else streamed.loaded,
        stored=stored,
    )
