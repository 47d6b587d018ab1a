"""The noising operator's numbers: those of the path, on every path; also in Triton's interpreter and on CUDA."""

import pytest
import torch
from torch import Tensor

from diffpref.kernels import noise_and_target
from tests.gaussian import PATHS_AT

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LOG_SNR = torch.tensor([-6.0, -0.5, 5.0], dtype=torch.float64)
B, K, ODD = 3, 2, (4, 33, 31)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(device: str, *, k: int = K, shared: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pictures and noise."""
    x0, eps = normal(B, k, *ODD, seed=1), normal(B, 1 if shared else k, *ODD, seed=2)
    return x0.to(device, dtype), eps.to(device, dtype)


def coefficients(device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: normal(B, seed=i).to(device, dtype) for i, name in enumerate(("alpha", "sigma", "a", "b"))}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", PATHS_AT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_what_the_path_says(device: str, name: str, shared: bool, dtype: torch.dtype, tolerance: float) -> None:
    path, t = PATHS_AT[name](LOG_SNR)
    t = t.to(device)
    x0, eps = some(device, shared=shared, dtype=dtype)
    four = {part: getattr(path, part)(t).to(device) for part in ("alpha", "sigma", "a", "b")}
    x_t, target = noise_and_target(x0, eps, **four)
    whole = eps.expand_as(x0).double()
    assert x_t.dtype == target.dtype == dtype and x_t.is_contiguous() and target.is_contiguous()
    # Where the two terms cancel, it is their rounding that is left: hence relative to what they are.
    for got, wanted in ((x_t, path.noise(x0.double(), whole, t)), (target, path.target(x0.double(), whole, t))):
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.std()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_any_pair_of_dtypes_is_rounded_once(device: str, dtype: torch.dtype, other: torch.dtype) -> None:
    x0, eps, four = some(device, shared=True, dtype=dtype)[0], some(device, shared=True, dtype=other)[1], {}
    four = coefficients(device)
    kept = torch.promote_types(dtype, other)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[kept]
    x_t, target = noise_and_target(x0, eps, **four)
    over = {part: values.double().reshape(-1, 1, 1, 1, 1) for part, values in four.items()}
    assert x_t.dtype == target.dtype == kept
    for got, (one, two) in ((x_t, ("alpha", "sigma")), (target, ("a", "b"))):
        wanted = over[one] * x0.double() + over[two] * eps.double()
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_shared_noise_is_that_of_each_candidate(device: str, k: int) -> None:
    x0, eps = some(device, k=k, shared=True)
    four = coefficients(device)
    together = noise_and_target(x0, eps, **four)
    each = noise_and_target(x0, eps.expand_as(x0).contiguous(), **four)
    assert all(torch.equal(x, y) for x, y in zip(together, each, strict=True))


def test_noising_of_any_layout_gives_the_same_bits(device: str) -> None:
    x0, eps = some(device, shared=False)
    four = coefficients(device)
    strided = noise_and_target(
        x0.transpose(2, 4).contiguous().transpose(2, 4),
        eps.repeat_interleave(2, 0)[::2],
        **{part: values.repeat_interleave(2)[::2] for part, values in four.items()},
    )
    wanted = noise_and_target(x0, eps, **four)
    assert all(torch.equal(x, y) and x.is_contiguous() for x, y in zip(strided, wanted, strict=True))


def test_noising_of_an_empty_batch(device: str) -> None:
    nothing, none = torch.empty(0, K, *ODD, device=device), torch.empty(0, device=device)
    x_t, target = noise_and_target(nothing, nothing, alpha=none, sigma=none, a=none, b=none)
    assert x_t.shape == target.shape == nothing.shape


@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck_of_the_noising(device: str, shared: bool) -> None:
    x0, eps = (x[..., :2, :2].contiguous().requires_grad_() for x in some(device, shared=shared, dtype=torch.float64))
    four = coefficients(device, torch.float64)
    assert torch.autograd.gradcheck(lambda x, e: noise_and_target(x, e, **four), (x0, eps))
