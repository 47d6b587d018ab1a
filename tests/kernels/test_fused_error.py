"""The error operator's numbers against float64, in every dtype and shape; also in Triton's interpreter and on CUDA."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffpref.kernels import error as module
from diffpref.kernels import fused_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ODD = (4, 33, 31)


@dataclass(frozen=True)
class Case:
    """A policy a little nearer to the target than the reference, as in training."""

    prediction: Tensor
    reference: Tensor
    target: Tensor
    weight: Tensor


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_case(
    device: str,
    rows: int = 4,
    chw: tuple[int, ...] = ODD,
    *,
    dtype: torch.dtype = torch.float32,
    target_dtype: torch.dtype | None = None,
    level: float = 0.3,
    step: float = 1e-3,
    group: int = 2,
) -> Case:
    """Errors of about `level`, of which the policy has removed a share of about 2 * `step`."""
    target = normal(rows, *chw, seed=1)
    away = level**0.5 * normal(rows, *chw, seed=2)
    prediction = target + away - step * away + 0.1 * step * normal(rows, *chw, seed=3)
    weight = 0.3 + normal(rows // group, seed=4).abs()
    return Case(
        prediction.to(device, dtype),
        (target + away).to(device, dtype),
        target.to(device, target_dtype or dtype),
        weight.to(device, torch.promote_types(dtype, torch.float32)),
    )


def exact(case: Case) -> tuple[Tensor, Tensor]:
    """Both errors in float64 and their plain difference: not the operator's formula, and 1e-12 exact."""
    policy, reference, target = (x.double().flatten(1) for x in (case.prediction, case.reference, case.target))
    weight = case.weight.double().repeat_interleave(len(target) // len(case.weight))
    of_policy, of_reference = (weight * (x - target).square().mean(1) for x in (policy, reference))
    return of_policy, of_policy - of_reference


def run(case: Case) -> tuple[Tensor, Tensor]:
    return fused_error(case.prediction, case.reference, case.target, case.weight)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted) / wanted).abs().max())


@pytest.mark.parametrize("level", [0.03, 0.3, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_and_differences_to_1e_6(device: str, dtype: torch.dtype, level: float) -> None:
    case = a_case(device, chw=(4, 64, 64), dtype=dtype, level=level)
    (error, difference), (of_policy, apart) = run(case), exact(case)
    assert error.dtype == difference.dtype == torch.float32
    assert (apart < 0).all() and (apart.abs() < 0.02 * of_policy).all()
    assert relative(error, of_policy) < 1e-6
    assert relative(difference, apart) < 1e-6


def test_subtracted_errors_would_be_100_times_worse(device: str) -> None:
    """What the factorised form is for: |F - R| much below |F - y|, as in the first thousand steps of a run."""
    case = a_case(device, chw=(4, 64, 64), step=1e-4)
    (error, difference), (_, apart) = run(case), exact(case)
    of_reference, _ = fused_error(case.reference, None, case.target, case.weight)
    assert relative(difference, apart) < 1e-6
    assert relative(error - of_reference, apart) > 1e-4


@pytest.mark.parametrize("chw", [(1,), (3,), (1024,), (1025,), ODD, (2, 3, 4, 5), (3, 32, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_size(device: str, dtype: torch.dtype, chw: tuple[int, ...]) -> None:
    case = a_case(device, rows=6, chw=chw, dtype=dtype, step=0.1, group=3)
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert got.shape == (6,)
        assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_any_pair_of_dtypes(device: str, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    case = a_case(device, dtype=dtype, target_dtype=target_dtype, step=0.03)
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert relative(got, wanted) < 1e-6


def test_float64_stays_float64(device: str) -> None:
    case = a_case(device, dtype=torch.float64)
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert got.dtype == torch.float64
        assert relative(got, wanted) < 1e-12


def test_many_rows(device: str) -> None:
    case = a_case(device, rows=512, chw=(3, 8, 8), step=0.03)
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert relative(got, wanted) < 1e-6


def test_rows_beyond_one_chunk(device: str) -> None:
    case = a_case(device, rows=6, chw=(4, 129, 127))  # plain torch takes 4 rows of these at once
    assert 4 * case.target[0].numel() < module.CHUNK < 5 * case.target[0].numel()
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert relative(got, wanted) < 1e-6
    leaf = case.prediction.clone().requires_grad_()
    fused_error(leaf, None, case.target, case.weight)[0].sum().backward()
    assert leaf.grad is not None
    weight = case.weight.repeat_interleave(2).reshape(-1, 1, 1, 1)
    wanted = 2 * weight * (case.prediction - case.target) / case.target[0].numel()
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-6, atol=0)


def test_an_empty_batch(device: str) -> None:
    nothing = torch.empty(0, *ODD, device=device, requires_grad=True)
    error, difference = fused_error(nothing, nothing.detach(), nothing.detach(), torch.empty(0, device=device))
    assert error.shape == difference.shape == (0,)
    (error + difference).sum().backward()
    assert nothing.grad is not None and nothing.grad.shape == nothing.shape


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_equal_predictions_differ_by_exactly_0(device: str, dtype: torch.dtype) -> None:
    case = a_case(device, dtype=dtype)
    error, difference = fused_error(case.prediction, case.prediction.clone(), case.target, case.weight)
    assert (error > 0).all()
    assert torch.equal(difference, torch.zeros_like(error))


def test_without_a_reference_the_difference_is_the_error(device: str) -> None:
    case = a_case(device)
    error, difference = fused_error(case.prediction, None, case.target, case.weight)
    assert torch.equal(error, run(case)[0]) and torch.equal(difference, error)
    assert difference.data_ptr() != error.data_ptr()


def test_the_same_bits_every_time(device: str) -> None:
    case = a_case(device, chw=(4, 64, 64))
    first = run(case)
    assert all(torch.equal(x, y) for _ in range(3) for x, y in zip(first, run(case), strict=True))


def test_large_halves_do_not_overflow(device: str) -> None:
    most = torch.full((1, 8), 6e4, dtype=torch.float16, device=device)
    error, difference = fused_error(most, -most, torch.zeros_like(most), torch.ones(1, device=device))
    assert error.item() == pytest.approx(float(most[0, 0]) ** 2, rel=1e-6) and difference.item() == 0


# --- the gradient

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: x.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(device: str, layout: str) -> None:
    case, lay = a_case(device), LAYOUTS[layout]
    leaf = lay(case.prediction).requires_grad_()
    plain = case.prediction.clone().requires_grad_()
    assert not leaf.is_contiguous()
    weight = case.weight.repeat_interleave(2)[::2]
    results = fused_error(leaf, lay(case.reference), lay(case.target), weight)
    wanted = fused_error(plain, case.reference, case.target, case.weight)
    assert all(torch.equal(x, y) for x, y in zip(results, wanted, strict=True))
    (results[0] + 2 * results[1]).sum().backward()
    (wanted[0] + 2 * wanted[1]).sum().backward()
    assert leaf.grad is not None and plain.grad is not None
    assert torch.equal(leaf.grad, plain.grad)


# Half precision rounds the gradient itself once; Triton's interpreter cuts bfloat16 off instead of rounding it.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-11), (torch.float64, 1e-12)],
)
@pytest.mark.parametrize("used", ["error", "difference", "both"])
def test_the_gradient_is_that_of_float64(device: str, used: str, dtype: torch.dtype, tolerance: float) -> None:
    case = a_case(device, dtype=dtype)
    leaf = case.prediction.clone().requires_grad_()
    results = fused_error(leaf, case.reference, case.target, case.weight)
    incoming = normal(2, 4, seed=9).to(device) * 1000  # or a half's gradient would be below its smallest number
    incoming *= torch.tensor({"error": [[1], [0]], "difference": [[0], [1]], "both": [[1], [1]]}[used]).to(device)
    kept = [i for i in range(2) if incoming[i].any()]
    torch.autograd.backward([results[i] for i in kept], [incoming[i].to(results[i]) for i in kept])
    assert leaf.grad is not None and leaf.grad.dtype == dtype

    wide = case.prediction.double().requires_grad_()
    of_policy, apart = exact(Case(wide, case.reference, case.target, case.weight))
    (of_policy * incoming[0] + apart * incoming[1]).sum().backward()
    assert wide.grad is not None
    smallest = 2**-25 if dtype == torch.float16 else 0  # half of its subnormals' distance
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1.001 * tolerance, atol=smallest)


def test_gradcheck(device: str) -> None:
    case = a_case(device, chw=(2, 3, 2), dtype=torch.float64)
    others = case.reference, case.target, case.weight
    assert torch.autograd.gradcheck(lambda x: fused_error(x, *others), (case.prediction.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda x: fused_error(x, None, *others[1:]), (case.prediction,))
