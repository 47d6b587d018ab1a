"""`compiled_steps FOLDER PRECISION`: three steps of a network, eager and compiled; prints its graphs and differences.

A program of its own: the tests' checks of annotations are no code that compiles.
"""

import json
import sys

import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters

from diffpref.backbones import Checkpoint, Times, open_backbone
from diffpref.backbones.adapters import LoRA, trainable
from diffpref.run.precision import PRECISIONS
from diffpref.training.models import Computing, Models, build_models
from tests.small_sdxl import SIZE

folder, precision = sys.argv[1:]
family = open_backbone(Checkpoint(folder), Times(), resolution=SIZE)
models = {}
for compiled in (False, True):
    computing = Computing(PRECISIONS[precision], compiled=compiled)
    accelerator = Accelerator(mixed_precision=precision)
    models[compiled] = build_models(family, LoRA(rank=4), accelerator, computing=computing, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(models[compiled].network):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
names = [list(each.network.state_dict()) for each in models.values()]
assert names[0] == names[1]
torch.manual_seed(0)
cond = {"prompt_embeds": torch.randn(2, 8, 32), "pooled": torch.randn(2, 16)}
cond = family.group_cond(cond, SIZE)
t = torch.tensor([10, 900])


def step(each: Models, x: torch.Tensor) -> list[torch.Tensor]:
    """Both predictions and the gradients."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            reference = each.reference(x, t, cond)
        policy = each.policy(x, t, cond)
        (policy - reference).float().square().mean().backward()
    grads = [p.grad.clone() for p in trainable(each.network)]
    each.network.zero_grad()
    return [reference, policy.detach(), *grads]


graphs, worst = [], 0.0
for _ in range(3):
    x = torch.randn(2, 4, 8, 8)
    pairs = list(zip(step(models[False], x), step(models[True], x), strict=True))
    ends = [torch.cat([part[side].float().flatten() for part in pairs]) for side in (0, 1)]
    worst = max(worst, ((ends[1] - ends[0]).norm() / ends[0].norm()).item())
    graphs.append(counters["stats"]["unique_graphs"])
print(json.dumps({"line": models[True].lines[-1], "graphs": graphs, "worst": worst}))
