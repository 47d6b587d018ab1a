"""The engine of a run, from its settings: measured, chosen and said once, before the first step."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from diffpref.backbones.adapters import trainable
from diffpref.engine.head import coefficients, separable
from diffpref.engine.independence import check_independent, draws_masks, mixing_module
from diffpref.engine.memory import GIB, KEPT_FREE, candidate_bytes, free_bytes, is_checkpointing
from diffpref.engine.modes import Auto, Cut, Mode, Work, name_of
from diffpref.engine.plan import Plan, choose
from diffpref.engine.reference import ReferencePass
from diffpref.engine.runner import Runner
from diffpref.engine.step import Engine
from diffpref.engine.stored import StoredErrors
from diffpref.probes import Prober
from diffpref.types import Backbone, Errors, Loss, Probe

REPLICATED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)
"""Where every process holds the whole network, so that its gradients can be averaged after the window."""


def make_plan(
    choice: Mode | Auto,
    accelerator: Accelerator,
    *,
    network: torch.nn.Module,
    policy: Backbone,
    example: Probe,
    sizes: tuple[int, int, int],
    cheap_scratch: bool,
    state_bytes: int,
    budget_gib: float,
    kept: Plan | None = None,
) -> Plan:
    """The mode of the run, from one candidate on the device; turns checkpointing on where that needs it.

    Args:
        policy: over the network that is not wrapped.
        example: one group of one candidate.
        sizes: as the function `sizes` gives them.
        cheap_scratch: a gradient of all trained parameters is small beside the network.
        state_bytes: of the optimizer for each trained weight.
        budget_gib: for graphs and scratches; 0 takes what is free.
        kept: of the checkpoint that is continued: `auto` takes it again while it fits, for the same rounding.

    Raises:
        ValueError: a mode that is asked for and cannot be exact, or cannot fit.
    """
    replicated = accelerator.distributed_type in REPLICATED
    automatic = isinstance(choice, Auto)
    if not automatic and choice.cuts:
        check_independent(network, name_of(choice))
        if not replicated:
            raise ValueError(
                f"loss_mode {name_of(choice)} needs the whole network in every process: set loss_mode: joint."
            )
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    with accelerator.autocast():
        candidate, checkpointed = _measure(policy, network, example)
    groups, k, batch = sizes
    work = Work(
        candidate=candidate,
        checkpointed=checkpointed,
        gradient=4 * count,
        groups=groups,
        k=k,
        cheap_scratch=cheap_scratch,
        cut=mixing_module(network) is None and replicated,
        batch=batch,
    )
    budget = int(budget_gib * GIB) if budget_gib else _free_budget(accelerator, count * (4 + state_bytes))
    on = is_checkpointing(network)
    plan = choose(choice, work, checkpointing=on, budget=budget)
    if automatic and kept is not None and (work.cut or not kept.mode.cuts):
        used = kept.mode.need(work, kept.micro_batch, checkpointing=kept.checkpointing)
        if used <= budget:
            plan = replace(kept, need=used, budget=budget, fits=True)
    if plan.checkpointing and not on:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    return plan


def sizes(b: int, k: int, *, chains: int, accumulation: int) -> tuple[int, int, int]:
    """How many sets of candidates belong together, of how many candidates, and `Work.batch`, for b groups of k.

    Args:
        chains: of a prompt, all pairs of which at one step belong together, over the whole window; 2 or less where
            every group is a set of its own.
        accumulation: batches of the window.
    """
    if chains <= 2:
        return b, k, 0
    pairs = math.comb(chains, 2)
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


def _free_budget(accelerator: Accelerator, later: int) -> int:
    """Bytes that are free for graphs and scratches: the least of all processes, who must choose alike.

    Args:
        later: bytes that the optimizer and the gradients are going to take.
    """
    free = int(free_bytes(accelerator.device) * (1 - KEPT_FREE)) - later
    everyone: Tensor = accelerator.gather(torch.tensor([free / GIB], device=accelerator.device))  # type: ignore[assignment]
    return max(int(float(everyone.min()) * GIB), 0)


def build_engine(
    plan: Plan,
    accelerator: Accelerator,
    *,
    network: torch.nn.Module,
    prepared: torch.nn.Module,
    policy: Backbone,
    wrapped: Backbone,
    reference: Backbone,
    objective: Loss,
    scores: Tensor,
    prober: Prober,
    reference_batch: int = 0,
    window: int = 0,
    inverts: bool = False,
    loaded: Callable[[], AbstractContextManager] = nullcontext,
    stored: StoredErrors | None = None,
) -> Engine:
    """The engine that follows the plan.

    Args:
        prepared: the network as accelerate wraps it.
        policy: over the network itself; `wrapped` over the prepared one.
        scores: of a batch, on which the objective is tried.
        reference_batch: candidates of one forward of the reference; 0 for the shapes of the policy's own forwards.
        window: batches whose reference is evaluated at once; 0 for as many as fill a forward without a graph.
        inverts: the probe runs the reference too.
        loaded: inside, the reference's weights are in place.
    """
    b, k = scores.shape
    runner = Runner(
        model=policy,
        parameters=trainable(network),
        objective=objective,
        wrapped=wrapped,
        unsynchronized=lambda: accelerator.no_sync(prepared),
        autocast=lambda: accelerator.autocast(),
        backward=accelerator.backward,
        unit=1.0 if accelerator.scaler is None else unit_weight(objective, scores),
    )
    cut = Cut(
        micro_batch=plan.micro_batch,
        reference_batch=reference_batch,
        separable=b == 1 or separable(objective, scores),
        masks=draws_masks(network),
    )
    return Engine(
        mode=plan.mode,
        cut=cut,
        runner=runner,
        reference=ReferencePass(reference, runner.autocast, loaded, stored),
        prober=prober,
        block=window or max(plan.mode.without_graph(cut) // (b * k), 1),
        inverts=inverts,
        device=accelerator.device,
        processes=accelerator.num_processes,
    )


def unit_weight(objective: Loss, scores: Tensor) -> float:
    """The power of two nearest to the largest coefficient where policy and reference agree; 1 where all are 0."""
    even = torch.ones_like(scores, dtype=torch.float32)
    _, slopes = coefficients(objective, Errors(even, even), scores)
    largest = slopes.abs().max()
    return float(largest.log2().round().exp2()) if 0 < largest < float("inf") else 1.0
