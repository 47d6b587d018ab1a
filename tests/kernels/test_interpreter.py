"""The Triton code itself, without a GPU: the operators' tests once more, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffpref.kernels import error, fused_error, noise_and_target, noising
from tests.kernels.test_fused_error import a_case, exact, relative, run

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NUMPY_TOO_NEW = "only 0-dimensional arrays can be converted to Python scalars"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's run")
def test_the_triton_code_passes_the_same_tests() -> None:
    # Triton reads the variable once, when it is imported. Two tests of size are left out: 500 programs take seconds.
    pytest.importorskip("triton", reason="Triton is not installed")
    files = [str(HERE / f"test_{name}.py") for name in ("fused_error", "noising", "interpreter")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not many and not chunk", *files]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    if NUMPY_TOO_NEW in done.stdout:
        pytest.skip("this Triton's interpreter is older than this numpy: it needs triton 3.7 with numpy 2.4")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "test_interpreter" not in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="only in the interpreter's run")
def test_plain_torch_computes_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*inputs: object) -> None:
        raise AssertionError("plain torch ran")

    for module, name in ((error, "plain_forward"), (error, "plain_backward"), (noising, "plain_forward")):
        monkeypatch.setattr(module, name, unwanted)
    x = torch.ones(2, 3, requires_grad=True)
    one = torch.ones(2)
    fused_error(x, x.detach(), torch.zeros(2, 3), one)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 3), 2 / 3))
    noise_and_target(torch.ones(2, 1, 3), torch.ones(2, 1, 3), alpha=one, sigma=one, a=one, b=one)
    with pytest.raises(AssertionError, match="plain torch ran"):
        fused_error(x.double(), None, torch.zeros(2, 3), one)


@pytest.mark.skipif(not INTERPRETED, reason="only in the interpreter's run")
def test_more_blocks_than_a_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a latent of more than a million elements has."""
    from diffpref.kernels import triton_error

    monkeypatch.setattr(triton_error, "BLOCK", 16)
    case = a_case("cpu", chw=(3, 11, 17))
    for got, wanted in zip(run(case), exact(case), strict=True):
        assert relative(got, wanted) < 1e-6
