"""The fused LoRA linear: the formula, its gradients in every precision, and what it saves and launches."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from diffpref.backbones.adapters.fused_lora import lora_linear
from diffpref.counting.counters import Usage

SCALE = 0.7


def draw(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def matrices(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias, a, b of a layer from 6 to 5 channels with rank 3."""
    torch.manual_seed(0)
    weight, bias = draw(5, 6, dtype=dtype, grad=False), draw(5, dtype=dtype, grad=False)
    master = torch.promote_types(dtype, torch.float32)
    return weight, bias, draw(3, 6, dtype=master), draw(5, 3, dtype=master)


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (2, 2, 3, 6), (1, 6)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_layer_with_the_product_added_to_its_weight(shape: tuple[int, ...], with_bias: bool) -> None:
    weight, bias, a, b = matrices()
    x = draw(*shape)
    found = lora_linear(x, weight, bias if with_bias else None, a, b, scale=SCALE)
    expected = linear(x, weight + SCALE * b @ a, bias if with_bias else None)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-13)
    seen = draw(*found.shape, grad=False)
    for one, other in zip(
        torch.autograd.grad(found, (x, a, b), seen), torch.autograd.grad(expected, (x, a, b), seen), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_gradients_by_finite_differences(scale: float) -> None:
    weight, bias, a, b = matrices()
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, weight, bias, a, b, scale=scale), (draw(2, 4, 6), a, b)
    )


@pytest.mark.parametrize(
    "make",
    [lambda: draw(4, 2, 6).transpose(0, 1), lambda: draw(2, 6, 4).transpose(1, 2), lambda: draw(2, 9, 6)[:, 2:7]],
)
def test_inputs_that_are_views(make: Callable[[], torch.Tensor]) -> None:
    weight, bias, a, b = matrices()
    x = make()
    assert not x.is_contiguous()
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, scale=SCALE), (x, a, b))
    apart = lora_linear(x, weight, bias, a, b, scale=SCALE).transpose(0, 1)
    assert all(g is not None for g in torch.autograd.grad(apart.sum(), (a, b)))


@pytest.mark.parametrize("learning", ["x", "a", "b", "xa", "xb", "ab", "xab"])
def test_only_what_is_asked_for_gets_a_gradient(learning: str) -> None:
    weight, bias, a, b = matrices()
    parts = {"x": draw(4, 6), "a": a, "b": b}
    full = torch.autograd.grad(lora_linear(parts["x"], weight, bias, a, b, scale=SCALE).square().sum(), parts.values())
    for name, part in parts.items():
        part.requires_grad_(name in learning)
    lora_linear(parts["x"], weight, bias, a, b, scale=SCALE).square().sum().backward()
    for (name, part), expected in zip(parts.items(), full, strict=True):
        assert (part.grad is not None) == (name in learning)
        if part.grad is not None:
            torch.testing.assert_close(part.grad, expected)
    assert weight.grad is None and bias.grad is None


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_with_float32_masters(dtype: torch.dtype, unit: float) -> None:
    weight, bias, a, b = matrices(dtype)
    x = draw(3, 8, 6, dtype=dtype)
    found = lora_linear(x, weight, bias, a, b, scale=SCALE)
    assert found.dtype == dtype
    exact = [part.detach().double().requires_grad_() for part in (x, a, b)]
    wanted = linear(exact[0], weight.double() + SCALE * exact[2] @ exact[1], bias.double())
    seen = draw(*found.shape, dtype=dtype, grad=False)
    gradients = torch.autograd.grad(found, (x, a, b), seen)
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32]
    pairs = [(found, wanted), *zip(gradients, torch.autograd.grad(wanted, exact, seen.double()), strict=True)]
    for one, other in pairs:
        # A handful of roundings on the way, each of one unit of the largest value.
        assert (one.double() - other).abs().max() <= 4 * unit * other.abs().max()


def test_with_b_zero_the_output_is_the_base_layers_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weight, bias, a, b = matrices(dtype)
        x = draw(3, 8, 6, dtype=dtype)
        assert torch.equal(lora_linear(x, weight, bias, a, torch.zeros_like(b), scale=1.0), linear(x, weight, bias))


def test_under_autocast_it_computes_in_autocasts_precision() -> None:
    weight, bias, a, b = matrices(torch.float32)
    x = draw(4, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = lora_linear(x, weight, bias, a, b, scale=SCALE)
    expected = linear(x, weight + SCALE * b @ a, bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03 * expected.abs().max().item(), rtol=0)
    found.float().square().sum().backward()
    assert x.grad is not None and a.grad is not None and x.grad.dtype == a.grad.dtype == torch.float32
    double = [part.detach().double() for part in matrices(torch.float64)]
    with torch.autocast("cpu", torch.bfloat16):
        assert lora_linear(draw(4, 6), *double, scale=SCALE).dtype == torch.float64


def test_copies_stand_in_for_the_casts_and_the_masters_get_the_gradient() -> None:
    weight, bias, a, b = matrices(torch.bfloat16)
    x = draw(4, 6, dtype=torch.bfloat16)
    copies = (a.detach().bfloat16(), b.detach().bfloat16())
    results = [lora_linear(x, weight, bias, a, b, scale=SCALE, copies=given) for given in (None, copies)]
    assert torch.equal(*results)
    first, second = (torch.autograd.grad(result.float().square().sum(), (a, b)) for result in results)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    doubled = lora_linear(x, weight, bias, a, b, scale=SCALE, copies=(2 * copies[0], copies[1]))
    assert not torch.equal(doubled, results[0]), "they are what is computed with"


def test_a_change_before_the_backward_is_noticed() -> None:
    weight, bias, a, b = matrices(torch.bfloat16)
    loss = lora_linear(draw(4, 6, dtype=torch.bfloat16), weight, bias, a, b, scale=SCALE).float().sum()
    with torch.no_grad():
        a += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_saves_its_input_and_one_small_matrix(dtype: torch.dtype) -> None:
    weight, bias, a, b = matrices(dtype)
    x = draw(8, 6, dtype=dtype)
    sizes: dict[int, int] = {}
    permanent = {part.untyped_storage().data_ptr() for part in (weight, bias, a, b)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    copies = (a.detach().to(dtype), b.detach().to(dtype))
    permanent |= {part.untyped_storage().data_ptr() for part in copies}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        lora_linear(x, weight, bias, a, b, scale=1.0, copies=copies)
    mine = {place: size for place, size in sizes.items() if place not in permanent}
    assert sum(mine.values()) == (8 * 6 + 8 * 3) * x.element_size()
    assert x.untyped_storage().data_ptr() in mine


def test_launches_three_forward_and_five_backward() -> None:
    weight, bias, a, b = matrices(torch.float32)
    x = draw(2, 4, 6, dtype=torch.float32)
    with Usage() as forward:
        y = lora_linear(x, weight, bias, a, b, scale=1.0)
    gradient = torch.ones_like(y)
    with Usage() as backward:
        torch.autograd.grad(y, (x, a, b), gradient)
    assert (forward.launches, backward.launches) == (3, 5)
    # Eight rows through W (5 x 6), A (3 x 6) and B (5 x 3); backward, A and B twice.
    assert forward.flops == 2 * 8 * (30 + 18 + 15) and backward.flops == 2 * 8 * (30 + 2 * 18 + 2 * 15)


def test_no_second_derivative_is_given_as_if_it_were_one() -> None:
    weight, bias, a, b = matrices()
    x = draw(4, 6)
    (first,) = torch.autograd.grad(lora_linear(x, weight, bias, a, b, scale=1.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
