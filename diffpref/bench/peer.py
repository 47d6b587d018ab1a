"""Our training step against the diffusers research script's order, on the CPU: one small SDXL, the same pictures.

The script encodes pictures and prompts at every step, has peft's LoRA, and runs the policy before the reference with
its graph alive; ours finds latents and text in its cache. Both end with AdamW. They take turns, so that what else the
machine does meets both.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones import Checkpoint, sdxl
from diffpref.backbones.attention.processors import install_attention
from diffpref.backbones.lora import attach_lora, trainable
from diffpref.backbones.reference import AdapterOff
from diffpref.counting.architectures import SDXL
from diffpref.counting.networks import shape_of
from diffpref.counting.peers import attach_stock_lora, peer_step
from diffpref.counting.steps import BETA, Ready, Setup, our_step
from diffpref.embedded import embedded
from diffpref.probe import forward_probe
from diffpref.types import Probe

PAIRS, SIDE, RANK = 4, 64, 16
PROMPTS = ("red apple", "fox", "rocket", "cactus")


def race(repeats: int) -> tuple[list[dict[str, Any]], str]:
    """Seconds a step of both, and the ratio with its spread over `repeats` turns."""
    checkpoint = Checkpoint(str(embedded("assets/tiny-sdxl")))
    encoder = sdxl.load_encoder(checkpoint, torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    pictures = torch.rand(PAIRS * 2, 3, SIDE, SIDE, generator=draws) * 2 - 1
    t = torch.randint(1000, (PAIRS,), generator=draws)
    path = sdxl.load_path(checkpoint)

    def probe() -> Probe:
        # Both draw the autoencoder's noise alike, so that both see the same latents.
        seeds = [torch.Generator().manual_seed(place) for place in range(len(pictures))]
        latents: Tensor = encoder.encode_pictures(pictures, seeds).unflatten(0, (PAIRS, 2)).float()
        noise = torch.randn(latents[:, :1].shape, generator=torch.Generator().manual_seed(1)).expand_as(latents)
        cond = sdxl.group_cond(encoder.encode_prompts(PROMPTS), SIDE)
        return forward_probe(path, latents, t, noise, cond)

    cached = probe()
    ours, theirs = (_ready(checkpoint, stock=stock) for stock in (False, True))

    def our_turn() -> None:
        with ours.autocast() as region:
            our_step(ours, region, cached, "joint")

    runs = {"ours": _with_optimizer(ours, our_turn)}
    runs["diffusers script"] = _with_optimizer(theirs, lambda: peer_step(theirs.network, theirs.policy, probe(), BETA))
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    middle = statistics.median(ratios)
    lines = ["| step | seconds, median |", "| --- | --- |"]
    lines += [f"| {name} | {statistics.median(values):.3f} |" for name, values in seconds.items()]
    lines += ["", f"ours is {middle:.2f} times faster ({min(ratios):.2f} to {max(ratios):.2f} over {repeats} turns)"]
    return [{"seconds": seconds, "ratios": ratios, "median": middle}], "\n".join(lines)


def _ready(checkpoint: Checkpoint, *, stock: bool) -> Ready:
    network = sdxl.load_network(checkpoint, torch.float32).train()
    path = sdxl.load_path(checkpoint)
    if stock:
        attach_stock_lora(network, RANK, sdxl.LORA_TARGETS)
    else:
        install_attention(network, "auto", torch.float32)
        attach_lora(network, RANK, sdxl.LORA_TARGETS, seed=0)
    policy = sdxl.backbone(network, path)
    setup = Setup(replace(SDXL, network=dict(network.config)), SIDE, rank=RANK, precision="no", stock=stock)
    return Ready(
        setup, network, policy, AdapterOff(policy, network), trainable(network), shape_of(setup.architecture, SIDE)
    )


def _with_optimizer(ready: Ready, step: Callable[[], object]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(ready.parameters, lr=1e-5)

    def run() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad()

    return run
