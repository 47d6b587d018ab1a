"""The counter against modules whose FLOPs, bytes and operators are known by hand."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffpref.counting.counters import Usage
from diffpref.counting.meta import as_on_a_gpu

BATCH, IN, OUT = 6, 32, 48


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_linear_layer() -> None:
    layer = nn.Linear(IN, OUT, bias=False, device="meta")
    x = meta(BATCH, IN)
    with as_on_a_gpu(), Usage() as usage:
        y = layer(x)
    assert usage.flops == 2 * BATCH * IN * OUT
    assert usage.launches == 1
    assert usage.live_bytes == usage.peak_bytes == BATCH * OUT * 4
    del y
    assert usage.live_bytes == 0 and usage.peak_bytes == BATCH * OUT * 4


def test_its_backward() -> None:
    layer = nn.Linear(IN, OUT, bias=False, device="meta")
    x = meta(BATCH, IN).requires_grad_()
    with as_on_a_gpu(), Usage() as usage:
        y = layer(x)
        y.backward(meta(BATCH, OUT))
    # The product, and one for each gradient.
    assert usage.flops == 3 * 2 * BATCH * IN * OUT
    assert usage.launches == 3
    assert layer.weight.grad is not None and x.grad is not None
    # The output and both gradients; at the peak its incoming gradient too, which is gone.
    assert usage.live_bytes == 4 * (BATCH * OUT + IN * OUT + BATCH * IN)
    assert usage.peak_bytes == usage.live_bytes + 4 * BATCH * OUT


def test_a_convolution_counts_each_output_pixel() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta", dtype=torch.bfloat16)
    x = meta(2, 3, 16, 16, dtype=torch.bfloat16)
    with as_on_a_gpu(), torch.no_grad(), Usage() as usage:
        layer(x)
    assert usage.flops == 2 * (2 * 16 * 16) * 8 * (3 * 3 * 3)
    assert usage.launches == 1 and usage.live_bytes == 0 and usage.peak_bytes == 2 * 8 * 16 * 16 * 2


def test_attention_keeps_no_matrix_of_scores() -> None:
    b, h, s, z, d = 2, 3, 128, 96, 64
    q, k, v = (meta(b, h, n, d, dtype=torch.bfloat16).requires_grad_() for n in (s, z, z))
    with as_on_a_gpu(), Usage() as usage:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        forward, held = usage.flops, usage.live_bytes
        out.backward(torch.empty_like(out))
    product = 2 * b * h * s * z * d
    assert forward == 2 * product
    # The backward computes the scores again, and a product for each of dv, dp, dq and dk.
    assert usage.flops == forward + 5 * product
    # The output, and a float for each query, whose number a GPU's kernel rounds up; the scores would be 147456 bytes.
    output, sums = b * h * s * d * 2, b * h * s * 4
    assert output + sums <= held <= output + 2 * sums
    assert q.grad is not None and q.grad.shape == q.shape and k.grad is not None and k.grad.shape == k.shape


def test_views_and_allocations_launch_nothing() -> None:
    x = meta(4, 6)
    with Usage() as usage:
        x.t().reshape(3, 2, 4).transpose(0, 1)[0].unsqueeze(0).expand(5, 3, 4).detach()
        torch.empty_like(x)
        assert usage.launches == 0
        x.t().contiguous()
        x.add_(1)
        torch.add(x, 1)
        torch.zeros(3, device="meta")
    assert usage.launches == 4


def test_a_checkpointed_block_runs_again_and_keeps_its_input_alone() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(IN, IN, bias=False), nn.GELU()) for _ in range(3))).to("meta")
    product = 2 * BATCH * IN * IN
    counts = {}
    for checkpointed in (False, True):
        x = meta(BATCH, IN).requires_grad_()
        with as_on_a_gpu(), Usage() as usage:
            y = checkpoint(layers, x, use_reentrant=False) if checkpointed else layers(x)
            assert isinstance(y, Tensor)
            held = usage.live_bytes
            y.sum().backward()
        counts[checkpointed] = held, usage.flops
        layers.zero_grad()
    row = BATCH * IN * 4
    # Without: each layer's product and each activation, the last being the output. With: the output alone.
    assert counts[False] == (6 * row, 9 * product)
    # Run again, but for the product after which nothing more is saved.
    assert counts[True][0] == row and counts[True][1] == 12 * product


def test_what_was_there_before_counts_when_it_is_held() -> None:
    parameter = nn.Parameter(meta(10, 10))
    with Usage() as usage:
        assert usage.live_bytes == 0
        usage.hold([parameter, parameter, parameter.view(100)])
        assert usage.live_bytes == usage.peak_bytes == 400
        kept = parameter * 2
        assert usage.live_bytes == 800
        del kept
        assert usage.live_bytes == 400 and usage.peak_bytes == 800


def test_writing_in_place_adds_no_bytes() -> None:
    x = meta(100)
    with Usage() as usage:
        y = x + 1
        y.mul_(2)
        y.view(10, 10).add_(1)
        torch.add(x, 1, out=y)
    assert usage.live_bytes == usage.peak_bytes == 400
    assert usage.launches == 4
