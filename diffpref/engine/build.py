"""The engine of a run, from its settings: measured, chosen and said once, before the first step."""

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from diffpref.backbones import Family
from diffpref.backbones.adapters import Streamed, trainable
from diffpref.backbones.guidance import guided
from diffpref.engine.head import coefficients, separable
from diffpref.engine.independence import check_independent, draws_masks, mixing_module
from diffpref.engine.memory import GIB, KEPT_FREE, candidate_bytes, free_bytes, is_checkpointing
from diffpref.engine.passes import Runner
from diffpref.engine.plan import Plan, Work, choose, need
from diffpref.engine.reference import ReferencePass
from diffpref.engine.step import Engine
from diffpref.engine.stored import StoredErrors
from diffpref.probes import AnyBatch, Stage, StepBatch
from diffpref.training.config import LossEngine, TrainConfig
from diffpref.training.models import Models
from diffpref.types import Backbone, Cond, Errors, Objective, Probe

FIRST_BATCH = 8
"""Candidates of one forward of two-pass's losses: it holds no graph, and a GPU is not full with fewer."""
REPLICATED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)
"""Where every process holds the whole network, so that its gradients can be averaged after the window."""


def make_plan(
    config: TrainConfig,
    family: Family,
    accelerator: Accelerator,
    models: Models,
    batch: AnyBatch,
    empty: Cond,
    *,
    kept: Plan | None,
) -> Plan:
    """The mode of the run, from one candidate of a batch on the device; turns checkpointing on where that needs it.

    Args:
        empty: the unconditional prompt, for guidance in the loss.
        kept: of the checkpoint that is continued: `auto` takes it again while it fits, for the same rounding.

    Raises:
        ValueError: a mode that is asked for and cannot be exact, or cannot fit.
    """
    settings, network = config.engine, models.network
    mode = settings.loss_mode
    if mode in ("deferred", "two-pass"):
        check_independent(network, mode)
        if accelerator.distributed_type not in REPLICATED:
            raise ValueError(f"loss_mode {mode} needs the whole network in every process: set loss_mode: joint.")
    b, k = batch.candidates.scores.shape
    policy = guided(family.backbone(network), config.probe.traits.guidance, empty)
    x0 = batch.candidates.x0[:1, :1]
    cond = family.group_cond(batch.candidates.cond, config.data.resolution)
    one = {name: value[:1] for name, value in cond.items()}
    probe = Probe(x0, x0, batch.t[:1], torch.ones(1, device=x0.device), one)
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    with accelerator.autocast():
        candidate, checkpointed = _measure(policy, network, probe)
    cut = mixing_module(network) is None and accelerator.distributed_type in REPLICATED
    sets, size, alone = sizes(config, b, k)
    work = Work(candidate, checkpointed, 4 * count, sets, size, config.adapter.added, cut, alone)
    budget = _budget(settings, accelerator, count * (4 + config.optimizer.state_bytes))
    on = is_checkpointing(network)
    plan = choose(work, mode=mode, micro_batch=settings.micro_batch, checkpointing=on, budget=budget)
    if mode == "auto" and kept is not None:
        used = need(work, kept.mode, kept.micro_batch, checkpointing=kept.checkpointing)
        if used <= budget and (cut or kept.mode == "joint"):
            plan = replace(kept, need=used, budget=budget, fits=True)
    if plan.checkpointing and not on:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    return plan


def sizes(config: TrainConfig, b: int, k: int) -> tuple[int, int, int]:
    """How many sets of candidates belong together, of how many candidates, and `Work.batch`, for b groups of k.

    In D3PO all pairs of a prompt's chains at one step belong together, over the whole window."""
    chains = config.rounds.chains_per_prompt
    if config.probe.traits.takes is not StepBatch or chains == 2:
        return b, k, 0
    pairs = math.comb(chains, 2)
    accumulation = config.optimization.gradient_accumulation_steps
    alone = min(b * k, chains * math.ceil(b / pairs)) if accumulation > 1 else 0
    return math.ceil(b * accumulation / pairs), chains, alone


def _measure(policy: Backbone, network: torch.nn.Module, probe: Probe) -> tuple[int, int | None]:
    """Bytes of one candidate's graph as the network is, and with checkpointing where it can be turned on."""
    # The numbers of the run must not depend on whether it was measured.
    with torch.random.fork_rng(devices=[probe.x_t.device] if probe.x_t.device.type == "cuda" else []):
        plain = _bytes(policy, network, probe)
        if is_checkpointing(network):
            return plain, plain
        if not getattr(network, "_supports_gradient_checkpointing", False):
            return plain, None
        network.enable_gradient_checkpointing()  # type: ignore[operator]
        try:
            return plain, _bytes(policy, network, probe)
        finally:
            network.disable_gradient_checkpointing()  # type: ignore[operator]


def _bytes(policy: Backbone, network: torch.nn.Module, probe: Probe) -> int:
    try:
        return candidate_bytes(policy, network, probe)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        # All that is known: more than there is.
        return 2 * free_bytes(probe.x_t.device)


def _budget(settings: LossEngine, accelerator: Accelerator, later: int) -> int:
    """Bytes for graphs and scratches: the least of all processes, who must choose alike.

    Args:
        later: bytes that the optimizer and the gradients are going to take.
    """
    if settings.memory_budget_gib:
        return int(settings.memory_budget_gib * GIB)
    free = int(free_bytes(accelerator.device) * (1 - KEPT_FREE)) - later
    everyone: Tensor = accelerator.gather(torch.tensor([free / GIB], device=accelerator.device))  # type: ignore[assignment]
    return max(int(float(everyone.min()) * GIB), 0)


def build_engine(
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
    scores: Tensor,
) -> Engine:
    """The engine that follows the plan.

    Args:
        empty: the unconditional prompt, for guidance in the loss.
        identity: of the run, which its stored inversions depend on.
        scores: of a batch, on which the objective is tried.
    """
    settings, scale = config.engine, config.probe.traits.guidance
    objective: Objective = config.objective
    b, k = scores.shape
    unit = 1.0 if accelerator.scaler is None else unit_weight(objective, scores)
    policy, reference = (guided(model, scale, empty) for model in (models.policy, models.reference))
    store = config.run.output_dir / "inversions"
    stage = Stage(
        policy=policy,
        reference=reference,
        weight=family.loss_weight,
        rule=family.step,
        seed=config.run.seed,
        identity=identity,
        folder=store,
    )
    prober = config.probe.build(stage)
    runner = Runner(
        guided(family.backbone(models.network), scale, empty),
        trainable(models.network),
        objective,
        lambda: accelerator.autocast(),
        (lambda value: value) if accelerator.scaler is None else accelerator.scaler.scale,
        unit,
    )
    first_batch = max(settings.reference_batch or FIRST_BATCH, plan.micro_batch)
    together = first_batch if plan.mode == "two-pass" else settings.reference_batch
    accumulation = config.optimization.gradient_accumulation_steps
    loaded = nullcontext if streamed is None else streamed.loaded
    return Engine(
        accelerator,
        models.prepared,
        policy,
        runner,
        ReferencePass(reference, runner.autocast, loaded, stored),
        prober,
        lambda prompts: family.group_cond(prompts, config.data.resolution),
        plan,
        # Weights that are streamed come in once for the whole window, which also holds all pairs of a chain's step.
        accumulation if streamed is not None or config.probe.traits.takes is StepBatch else max(together // (b * k), 1),
        settings.reference_batch,
        first_batch,
        b == 1 or separable(objective, scores),
        draws_masks(models.network),
        config.probe.traits.runs_reference,
    )


def unit_weight(objective: Objective, scores: Tensor) -> float:
    """The power of two nearest to the largest coefficient where policy and reference agree; 1 where all are 0."""
    even = torch.ones_like(scores, dtype=torch.float32)
    _, slopes = coefficients(objective, Errors(even, even), scores)
    largest = slopes.abs().max()
    return float(largest.log2().round().exp2()) if 0 < largest < float("inf") else 1.0
