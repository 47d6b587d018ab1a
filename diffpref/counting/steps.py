"""One training step on meta tensors, counted, by the functions that train."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpref.backbones.adapters import Adapter, LoRA, trainable
from diffpref.backbones.attention.processors import install_attention
from diffpref.backbones.guidance import guided
from diffpref.backbones.shape import Shape
from diffpref.counting.architectures import Architecture
from diffpref.counting.counters import Usage
from diffpref.counting.meta import Region, as_on_a_gpu, autocast
from diffpref.counting.networks import build_network, family_of, meta_probe, shape_of
from diffpref.engine.modes import Cut, Mode
from diffpref.engine.reference import ReferencePass
from diffpref.engine.rows import Block, Part
from diffpref.engine.runner import Runner
from diffpref.errors import model_error
from diffpref.objectives import DPO, RankDPO
from diffpref.run.precision import PRECISIONS
from diffpref.types import Backbone, Objective, Probe

BETA = 5000.0


@dataclass(frozen=True)
class Setup:
    """A network and how it is trained: all that its counts depend on, beside the size of a batch."""

    architecture: Architecture
    resolution: int
    adapter: Adapter = LoRA()
    """As its `counted` gives it."""
    checkpointing: bool = False
    precision: str = "bf16"
    text_tokens: int | None = None
    guidance: float = 1.0
    """Classifier-free guidance in the loss; other than 1 it doubles every forward."""

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return PRECISIONS[self.precision]

    @property
    def autocast(self) -> bool:
        """Whether autocast is on: over float32 weights."""
        return self.precision != "no" and self.adapter.autocast


@dataclass(frozen=True)
class Ready:
    """The setup's network on meta tensors, with its adapter and its reference."""

    setup: Setup
    network: torch.nn.Module
    policy: Backbone
    reference: Backbone
    parameters: Sequence[torch.nn.Parameter]
    shape: Shape
    cast: bool
    """Whether autocast is on."""

    def autocast(self) -> AbstractContextManager[Region]:
        """The precision that the loop runs the network under."""
        if not self.cast:
            return nullcontext(nullcontext)
        kind = self.parameters[0].device.type
        if kind == "meta":
            return autocast(self.setup.dtype)
        return nullcontext(lambda: torch.autocast(kind, self.setup.dtype))

    def probe(self, groups: int, k: int) -> Probe:
        """A batch, in float32 as the loop has it."""
        probe = meta_probe(self.shape, groups, k)
        device = self.parameters[0].device
        if device.type == "meta":
            return probe
        x_t, target = (torch.randn(each.shape, dtype=each.dtype, device=device) for each in (probe.x_t, probe.target))
        # One number a candidate is a class, of which there is a first; all else is what networks make of text.
        cond = {
            name: (torch.randn if size else torch.zeros)((groups, *size), device=device)
            for name, size in self.shape.cond.items()
        }
        # Inside every path: an index of a table, a share of noise, or sigma.
        t = torch.full((groups,), 0.5, device=device)
        return Probe(x_t, target, t, torch.ones(groups, device=device), cond)


@dataclass(frozen=True)
class Count:
    """What a step costs."""

    flops: int
    launches: int
    peak_bytes: int
    """Above the network's own weights and the reference's: adapter, gradients, scratches and graphs."""


def make_ready(setup: Setup, device: str = "meta") -> Ready:
    """The network of a setup, ready to train, on another device than meta with random weights.

    Raises:
        ValueError: a network that no backbone trains, or LoRA where there is none.
    """
    family = family_of(setup.architecture)
    adapter = setup.adapter
    adapter.check(family, setup.architecture.name)
    network = build_network(setup.architecture, adapter.base_dtype(setup.dtype))
    if device != "meta":
        materialize(network, torch.device(device))
    install_attention(network, "auto", setup.dtype)
    copied = adapter.copy(network, setup.dtype)
    if copied is not None:
        install_attention(copied, "auto", setup.dtype)
    adapter.attach(network, family, seed=0)
    if setup.checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    policy = family.meta_backbone(network)
    plain = adapter.reference(policy, network)
    reference = plain if copied is None else family.meta_backbone(copied)
    shape = shape_of(setup.architecture, setup.resolution, setup.text_tokens)
    if setup.guidance != 1:
        empty = {name: torch.zeros((1, *size), device=device) for name, size in shape.prompt.items()}
        policy, reference = (guided(model, setup.guidance, empty) for model in (policy, reference))
    return Ready(setup, network, policy, reference, trainable(network), shape, setup.autocast)


def count_step(ready: Ready, mode: Mode, *, groups: int = 1, k: int = 2, micro_batch: int = 1) -> Count:
    """A whole step of ours: reference, loss, gradients.

    Args:
        micro_batch: candidates of one graph, in the modes that cut.
    """
    return counted(ready, lambda region: our_step(ready, region, ready.probe(groups, k), mode, micro_batch))


def our_step(ready: Ready, region: Region, probe: Probe, mode: Mode, micro_batch: int = 1) -> None:
    """Adds the gradient of a step to the parameters', by the engine's functions in the engine's order."""
    groups, k = probe.x_t.shape[:2]
    objective: Objective = DPO(BETA) if k == 2 else RankDPO(BETA)
    block = Block([Part(probe, torch.empty(groups, k, device=probe.x_t.device).copy_(torch.arange(k).flip(0)))])
    cut = Cut(micro_batch=micro_batch)
    found = ReferencePass(ready.reference, region)(block, mode.forwards(block, cut))
    runner = Runner(model=ready.policy, parameters=ready.parameters, objective=objective, autocast=region)
    mode.gradient(runner, block, found, cut, accumulation=1, last=True)


@torch.no_grad()
def materialize(network: torch.nn.Module, device: torch.device) -> None:
    """Give a network on meta tensors random weights on a device: small normal ones, norms 1 and biases 0."""
    network.to_empty(device=device)
    draws = torch.Generator(device).manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim < 2:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            tensor.normal_(0, 0.02, generator=draws)


def graph_bytes(ready: Ready, candidates: int = 1) -> int:
    """Bytes that the graph of some candidates holds between their forward and their backward."""
    with as_on_a_gpu(), Usage() as usage, ready.autocast() as region, region():
        error: Tensor = model_error(ready.policy, ready.probe(1, candidates))
        held = usage.live_bytes
    del error
    return held


def counted(ready: Ready, step: Callable[[Region], None], held: Sequence[Tensor] = ()) -> Count:
    """What a step of a network on meta tensors costs.

    Args:
        held: tensors that are there beside it, such as other networks' weights.
    """
    for parameter in ready.parameters:
        parameter.grad = None
    usage = Usage()
    usage.hold(held)
    if ready.setup.adapter.added:
        usage.hold(ready.parameters)
    with as_on_a_gpu(), usage, ready.autocast() as region:
        step(region)
    count = Count(usage.flops, usage.launches, usage.peak_bytes)
    for parameter in ready.parameters:
        parameter.grad = None
    return count
