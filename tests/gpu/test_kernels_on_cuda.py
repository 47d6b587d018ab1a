"""The operators on a CUDA GPU: their tests once more, and what they cost. Skipped without one."""

import pytest
import torch

from benchmarks.operators import SIZES, benchmark
from diffpref.kernels import error, fused_error
from tests.kernels.test_fused_error import *  # noqa: F403  the same tests, on this file's device
from tests.kernels.test_fused_error import a_case, exact, relative, run
from tests.kernels.test_noising import *  # noqa: F403
from tests.kernels.test_operators import *  # noqa: F403
from tests.kernels.test_through_probes import *  # noqa: F403

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_runs_and_agrees_with_plain_torch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    case = a_case("cuda", chw=(4, 128, 128), dtype=dtype)
    plain = error.plain_forward(case.prediction, case.reference, case.target, case.weight)
    monkeypatch.setattr(error, "plain_forward", None)
    ours = fused_error(case.prediction, case.reference, case.target, case.weight)
    for got, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=0)  # 1e-6 from the exact value each


def test_more_than_a_million_elements() -> None:
    case = a_case("cuda", rows=2, chw=(16, 300, 301), group=1)
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert relative(got, wanted) < 1e-6


def test_a_gpu_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first, second = a_case("cuda:0"), a_case("cuda:1")
    with torch.cuda.device(0):
        results = [fused_error(c.prediction, c.reference, c.target, c.weight) for c in (first, second)]
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("picture", SIZES)
def test_the_operators_are_faster_than_separate_calls(picture: str) -> None:
    timings = benchmark(torch.device("cuda"), rows=64, elements=SIZES[picture], dtype=torch.bfloat16)
    for timing in timings:
        print(timing, f"{timing.gigabytes_per_second:.0f} GB/s")
        assert 0 < timing.ours_us < timing.separate_us
        assert timing.gigabytes_per_second < 10_000  # or the time is not that of the work
