"""Prints how many results a block gave, eager and compiled, adapters on and off, and their largest relative difference.

A program of its own: the tests' checks of annotations are no code that compiles.
"""

import json
from collections.abc import Callable

import torch
from diffusers.models.attention import BasicTransformerBlock

from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import attach_lora
from diffpref.backbones.attention.processors import install_attention
from tests.small_sdxl import small_unet

torch.manual_seed(0)
network = small_unet()
attach_lora(network, 4, ("to_k", "to_q", "to_v", "to_out.0"), seed=0)
install_attention(network, "auto", torch.float32)
for parameter in trainable(network):
    parameter.data += 0.3 * torch.randn(parameter.shape)
block = next(m for m in network.modules() if isinstance(m, BasicTransformerBlock))
x, text = torch.randn(2, 9, block.norm1.normalized_shape[0]), torch.randn(2, 5, 32)


def results(call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of the image tokens and of each trained tensor."""
    network.zero_grad()
    given = x.clone().requires_grad_()
    y = call(given, encoder_hidden_states=text)
    y.square().mean().backward()
    return [y.detach(), given.grad, *(p.grad.clone() for p in trainable(block))]


compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
pairs = list(zip(results(block), results(compiled), strict=True))
network.disable_adapters()
with torch.no_grad():
    pairs.append((block(x, encoder_hidden_states=text), compiled(x, encoder_hidden_states=text)))
network.enable_adapters()
pairs += list(zip(results(block), results(compiled), strict=True))
print(json.dumps([len(pairs), max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)]))
