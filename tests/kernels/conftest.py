"""Where the kernels' tests run: the CPU, in plain torch, or in the Triton code where TRITON_INTERPRET is 1."""

import os

import pytest
import torch

from diffpref.kernels import error, noising

if os.environ.get("TRITON_INTERPRET") == "1":
    torch.library.register_kernel("diffpref::fused_error", "cpu", error.launch_forward)
    torch.library.register_kernel("diffpref::fused_error_backward", "cpu", error.launch_backward)
    torch.library.register_kernel("diffpref::noising", "cpu", noising.launch_forward)


@pytest.fixture
def device() -> str:
    """Overridden in tests/gpu, which runs the same tests there."""
    return "cpu"
