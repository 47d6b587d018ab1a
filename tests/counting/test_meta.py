"""Meta tensors treated as on a GPU: autocast against torch's own, and values that the host reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffpref.counting.counters import Usage
from diffpref.counting.meta import as_on_a_gpu, autocast


class Block(nn.Module):
    """The kinds of layers of the networks that are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 8, 3, padding=1)
        self.group = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm(8)
        self.project = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.group(self.convolution(x)))
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.project(self.layer(x)).unflatten(-1, (3, 1, 8)).permute(2, 0, 3, 1, 4)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


@contextmanager
def cuda_rules() -> Iterator[None]:
    """torch's autocast for CUDA on fake CUDA tensors: `torch.autocast` itself refuses where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


class Saved:
    """What autograd saves: dtypes and sizes, each storage once, without the parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.seen = {p.untyped_storage()._cdata for p in module.parameters()}
        self.held: list[object] = []
        self.found: list[tuple[str, int]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(storage)
            self.found.append((str(tensor.dtype), storage.nbytes()))
        return tensor


def saved_by(block: nn.Module, x: Tensor) -> list[tuple[str, int]]:
    saved = Saved(block)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        block(x)
    return sorted(saved.found)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("trained", [True, False])
def test_autocast_saves_what_torch_s_own_saves(
    weights: torch.dtype, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def small() -> Block:
        before = torch.get_default_dtype()
        torch.set_default_dtype(weights)
        try:
            return Block().requires_grad_(trained)
        finally:
            torch.set_default_dtype(before)

    with torch.device("meta"):
        block = small()
    x = torch.empty(2, 4, 8, 8, device="meta").requires_grad_()
    with as_on_a_gpu(), autocast(torch.bfloat16) as region, region():
        ours = saved_by(block, x)

    attention = torch.ops.aten._scaled_dot_product_efficient_attention

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(*(each.to(torch.bfloat16) for each in (q, k, v)), None, True)[0]

    # Without a GPU torch cannot choose its attention kernel; autocast casts its three inputs.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    with FakeTensorMode(), torch.device("cuda"):
        block = small()
        x = torch.empty(2, 4, 8, 8).requires_grad_()
        with cuda_rules():
            theirs = saved_by(block, x)
    assert ours == theirs


def test_checkpointing_runs_layers_again_under_the_same_rules() -> None:
    layer = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)).to("meta", torch.bfloat16)
    x = torch.empty(2, 16, device="meta").requires_grad_()
    with as_on_a_gpu(), autocast(torch.bfloat16) as region:
        with region():
            y = checkpoint(layer, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_a_trained_weight_is_cast_once() -> None:
    layer = nn.Linear(16, 16, bias=False, device="meta")
    x = torch.empty(2, 16, device="meta", dtype=torch.bfloat16)
    with as_on_a_gpu(), Usage() as usage, autocast(torch.bfloat16) as region, region():
        layer(x)
        layer(x)
        assert usage.launches == 3
    layer.requires_grad_(False)
    with as_on_a_gpu(), Usage() as usage, autocast(torch.bfloat16) as region, region():
        layer(x)
        layer(x)
    assert usage.launches == 4


def test_torch_is_as_before_afterwards() -> None:
    before = {name: getattr(torch.nn.functional, name) for name in dir(torch.nn.functional)}
    with pytest.raises(RuntimeError, match="inside"), as_on_a_gpu(), autocast(torch.bfloat16):
        raise RuntimeError("inside")
    assert all(getattr(torch.nn.functional, name) is value for name, value in before.items())


def test_values_that_the_host_reads_are_ones() -> None:
    x = torch.empty(3, device="meta")
    with as_on_a_gpu():
        assert float(x.sum()) == 1 and bool((x > 0).all())
        assert x.cpu().tolist() == [1, 1, 1]
