"""peft's plain LoRA of linear layers computed as one operation, under peft's own names; peft computes all others."""

from collections import Counter
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from diffpref.backbones.adapters.fused_lora import lora_linear
from diffpref.backbones.precision import autocast_dtype


class FusedLinear(lora.Linear):
    """A peft layer whose forward with its one adapter is `lora_linear`; in all else, names and files, it is peft's."""

    adapter: str
    copies: "Copies"
    copied: tuple[Tensor, Tensor] | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.base_layer
        down: Any
        up: Any
        name = self.adapter
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        if self.disable_adapters or self.merged or trained or args or kwargs or self.active_adapters != [name]:
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[name], self.lora_B[name]
        copies = self.copied if self.copies.fresh else None
        return lora_linear(x, base.weight, base.bias, down.weight, up.weight, scale=self.scaling[name], copies=copies)


class Copies:
    """The adapters in the precision that the network computes in, renewed at the start of each of its forwards.

    One operation for all layers, in place of two casts in each. Outside a forward nobody vouches for them: averaged
    weights, for instance, come without a trace in autograd's counters. Then each layer casts its own."""

    def __init__(self, layers: list[FusedLinear]) -> None:
        self.layers = layers
        self.masters: Any = [part[layer.adapter].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
        self.targets: list[Tensor] = []
        self.fresh = False

    def renew(self, network: torch.nn.Module, inputs: object) -> None:
        """A forward pre-hook."""
        first: Any = self.layers[0]
        dtype = autocast_dtype(first.base_layer.weight)
        if first.disable_adapters or dtype == self.masters[0].dtype:
            return
        if not self.targets or (self.targets[0].dtype, self.targets[0].device) != (dtype, self.masters[0].device):
            self._allocate(dtype)
        with torch.no_grad():
            torch._foreach_copy_(self.targets, self.masters)
        self.fresh = True

    def release(self, network: torch.nn.Module, inputs: object, output: object) -> None:
        """A forward hook, also after an error."""
        self.fresh = False

    def _allocate(self, dtype: torch.dtype) -> None:
        # Made for samples, in inference mode, they could not serve training.
        with torch.inference_mode(False):
            copies = [torch.empty_like(master, dtype=dtype, requires_grad=False) for master in self.masters]
            # Another forward before the backward of the first writes the same numbers: `data` does not count that as a
            # change of what was saved. A change of the masters themselves is noticed.
            self.targets = [copy.data for copy in copies]
        for layer, pair in zip(self.layers, zip(copies[::2], copies[1::2], strict=True), strict=True):
            layer.copied = pair


def fuse_lora(network: torch.nn.Module) -> str:
    """Let `lora_linear` compute every LoRA layer that it covers; returns a line with how many, and what peft does."""
    layers: list[Any] = [module for module in network.modules() if isinstance(module, LoraLayer)]
    reasons = [why_peft(layer) for layer in layers]
    fused = [layer for layer, reason in zip(layers, reasons, strict=True) if reason is None]
    for layer in fused:
        # The object stays: whoever holds it, and every name in it, is as before.
        layer.__class__ = FusedLinear
        layer.adapter, layer.copied = layer.active_adapters[0], None
    copies = Copies(fused)
    for layer in fused:
        layer.copies = copies
    if fused:
        network.register_forward_pre_hook(copies.renew)
        network.register_forward_hook(copies.release, always_call=True)
    left = Counter(reason for reason in reasons if reason is not None)
    parts = [f"LoRA: {len(fused)} of {len(layers)} layers fused"]
    return ", ".join(parts + [f"{count} by peft ({reason})" for reason, count in left.items()])


def why_peft(layer: LoraLayer) -> str | None:
    """Why peft computes the layer, or None where `lora_linear` can."""
    if not isinstance(layer, lora.Linear):
        return type(layer).__name__
    base = layer.base_layer
    if type(base) is not torch.nn.Linear:
        return f"its base is a {type(base).__name__}"
    if len(layer.active_adapters) != 1:
        return "several adapters"
    name = layer.active_adapters[0]
    if name in layer.lora_variant:
        return type(layer.lora_variant[name]).__name__
    if not isinstance(layer.lora_dropout[name], torch.nn.Identity):
        return "dropout"
    if layer.lora_bias.get(name, False):
        return "a trained bias"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "its base is trained"
    return None
