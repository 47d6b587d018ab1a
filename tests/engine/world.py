"""Small real networks with adapters that differ from the reference, and windows of batches for the engine's tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel

from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import attach_lora
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.backbones.sd3 import SD3, SD3Network
from diffpref.backbones.sdxl import SDXL, SDXLNetwork
from diffpref.engine.modes import Cut, Joint, Mode
from diffpref.engine.reference import ReferencePass
from diffpref.engine.rows import Block, Part
from diffpref.engine.runner import References, Runner
from diffpref.engine.scalars import Outcome
from diffpref.objectives import D3PO, DDO, DPO, RankDPO, SmPO
from diffpref.path import rectified_flow, variance_preserving
from diffpref.probe import forward_probe, transition_probe
from diffpref.transition import Ancestral, FlowSDE
from diffpref.types import Backbone, Loss
from tests.small_sd3 import small_transformer
from tests.small_sdxl import small_unet

TOKENS = 8


@dataclass(frozen=True)
class World:
    """A network with an adapter that has learned something, and the model without it."""

    family: str
    network: torch.nn.Module
    policy: Backbone
    reference: Backbone
    dtype: torch.dtype

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return trainable(self.network)

    def runner(self, objective: Loss, **options: object) -> Runner:
        return Runner(model=self.policy, parameters=self.parameters, objective=objective, **options)  # type: ignore[arg-type]

    def gradient(self, work: Callable[[], object]) -> torch.Tensor:
        """All gradients after the work, in one row."""
        self.network.zero_grad()
        work()
        return torch.cat([p.grad.reshape(-1) for p in self.parameters if p.grad is not None])


def plain_transformer() -> torch.nn.Module:
    """SD3-medium's kind: diffusers' RMS norms of SD3.5 compute in float32, where weights before a backward and after it
    differ by rounding at 1e-8."""
    return SD3Transformer2DModel.from_config({**small_transformer().config, "qk_norm": None})


def world(family: str = "sdxl", dtype: torch.dtype = torch.float64, *, checkpointing: bool = False) -> World:
    torch.manual_seed(0)
    network = small_unet() if family == "sdxl" else plain_transformer()
    kind = SDXL if family == "sdxl" else SD3
    attach_lora(network, 2, kind.lora_targets, seed=0)
    with torch.no_grad():
        for parameter in trainable(network):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(dtype)
    network.train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    path = variance_preserving((1 - betas).cumprod(0).to(dtype)) if family == "sdxl" else rectified_flow()
    policy = (SDXLNetwork if family == "sdxl" else SD3Network)(network, path)
    return World(family, network, policy, AdapterOff(policy, network), dtype)


def part(w: World, b: int, k: int, seed: int, *, steps: bool = False, scores: torch.Tensor | None = None) -> Part:
    """A batch of b groups of k candidates, compared under forward noise or at a stored step."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws, dtype=w.dtype)

    cond = {"prompt_embeds": normal(b, TOKENS, 32), "pooled": normal(b, 16 if w.family == "sdxl" else 32)}
    if w.family == "sdxl":
        cond["time_ids"] = torch.tensor([32, 32, 0, 0, 32, 32], dtype=w.dtype).expand(b, 6)
        t = torch.randint(100, 900, (b,), generator=draws)
        s = t - 50
    else:
        t = torch.rand(b, generator=draws, dtype=w.dtype) * 0.8 + 0.15
        s = t - 0.1
    x0 = normal(b, k, 4, 8, 8)
    if steps:
        rule = Ancestral() if w.family == "sdxl" else FlowSDE()
        probe = transition_probe(w.policy.path, x0, 0.9 * x0 + 0.3 * normal(*x0.shape), t, s, cond, rule=rule)
    else:
        probe = forward_probe(w.policy.path, x0, t, normal(b, 1, 4, 8, 8).expand_as(x0), cond)
    if scores is None:
        scores = torch.rand(b, k, generator=draws)
    return Part(probe, scores)


@dataclass(frozen=True)
class Case:
    """An objective with groups that it takes, at a beta where the losses here are neither flat nor linear."""

    objective: Loss
    sizes: Sequence[int]
    kind: str = ""

    def parts(self, w: World, k: int, batches: int = 2) -> list[Part]:
        found = []
        for seed in range(batches):
            b = 2 if k < 4 else 1
            scores = None
            if self.kind == "real_fake":
                scores = (torch.arange(b * k).view(b, k) % 2).float()
            found.append(part(w, b, k, seed, steps=self.kind == "steps", scores=scores))
        return found


CASES = {
    "dpo": Case(DPO(beta=30.0), (2,)),
    "dpo anchor sft": Case(DPO(beta=30.0, anchor=1.0, sft=0.5), (2,)),
    "smpo": Case(SmPO(beta=30.0), (2,)),
    "rankdpo": Case(RankDPO(beta=30.0), (2, 3, 5, 8)),
    "d3po": Case(D3PO(beta=0.1, clip_style="none"), (2,), "steps"),
    "ddo": Case(DDO(beta=30.0), (2, 3, 8), "real_fake"),
}
SIZED = [(name, k) for name, case in CASES.items() for k in case.sizes]


def outcome(
    mode: Mode, runner: Runner, block: Block, references: References, *, micro_batch: int = 1, **cut: object
) -> Outcome:
    """What a mode makes of a window that is one block."""
    how = Cut(micro_batch=micro_batch, **cut)  # type: ignore[arg-type]
    return mode.gradient(runner, block, references, how, accumulation=len(block.parts), last=True)


def joint(w: World, objective: Loss, block: Block, references: References) -> Outcome:
    """One graph for each part."""
    return outcome(Joint(), w.runner(objective), block, references)


def references(w: World, block: Block) -> References:
    return ReferencePass(w.reference)(block, [range(len(block.rows))])
