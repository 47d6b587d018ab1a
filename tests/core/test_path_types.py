"""Paths keep precision, devices and the shapes of their samples."""

import pytest
import torch

from diffpref.path import variance_preserving
from tests.core.conventions import every_path
from tests.core.numbers import number, sdxl_alphas_cumprod
from tests.gaussian import PATHS_AT


@every_path
def test_float64_stays_float64(name: str) -> None:
    path, t = PATHS_AT[name](torch.zeros(1, dtype=torch.float64))
    x = torch.ones(1, 3, dtype=torch.float64)
    assert {method(x, x, t).dtype for method in (path.noise, path.target, path.to_x0, path.to_eps)} == {torch.float64}
    assert path.eps_weight(t).dtype == path.snr(t).dtype == torch.float64


def test_coefficients_go_where_the_pictures_are() -> None:
    # The meta device stands for an accelerator: mixing it with the CPU is an error there too.
    path, x = variance_preserving(number(0.9, 0.5)), torch.ones(2, 3, device="meta")
    for device in ("cpu", "meta"):
        t = torch.tensor([0, 1], device=device)
        assert path.alpha(t).device.type == device
        assert {method(x, x, t).device.type for method in (path.noise, path.to_x0, path.to_eps)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_schedule(dtype: torch.dtype) -> None:
    # 1 - alphas_cumprod[0] = 0.00085; in float16 it would be 0.00098 and sigma 7 % too large.
    path = variance_preserving(sdxl_alphas_cumprod().float())
    zero, one, t = torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype), torch.tensor([0])
    for got, exact in [
        (path.noise(zero, one, t), 0.00085**0.5),
        (path.to_x0(one, zero, t), -((0.00085 / 0.99915) ** 0.5)),
        (path.to_eps(one, zero, t), 1.0),
    ]:
        assert got.dtype == dtype
        # One rounding, that of the result.
        torch.testing.assert_close(got.double(), number(exact)[None], rtol=torch.finfo(dtype).eps, atol=0)


def test_half_precision_rounds_once() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([500, 20])
    x0, eps = torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(path.noise(x0, eps, t), path.noise(x0.float(), eps.float(), t).bfloat16())


def test_a_mixed_pair_takes_the_wider_type() -> None:
    path, t = variance_preserving(sdxl_alphas_cumprod().float()), torch.tensor([500])
    half, single = torch.ones(1, 2, dtype=torch.float16), torch.ones(1, 2)
    assert path.to_x0(half, single, t).dtype == path.to_x0(single, half, t).dtype == torch.float32


def test_a_half_precision_schedule_is_read_in_float32() -> None:
    table = sdxl_alphas_cumprod()[[999]].half()
    path, t = variance_preserving(table), torch.tensor([0])
    assert path.alpha(t).dtype == torch.float32
    torch.testing.assert_close(path.alpha(t).double() ** 2, table.double(), rtol=1e-6, atol=0)
