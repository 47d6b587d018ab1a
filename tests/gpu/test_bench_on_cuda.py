"""`python -m benchmarks timed` and `micro` on a CUDA GPU; skipped without one."""

import pytest
import torch

from benchmarks import attention, timed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_a_timed_step_holds_what_is_counted() -> None:
    rows, text = timed.timed(["sdxl"], [512], [1], 3)
    assert "matmul" in text
    for row in rows:
        assert row["finite"] and row["ms_a_pair"] > 0
        if "peer" not in row["step"]:
            assert row["peak_gib"] == pytest.approx(row["counted_gib"], rel=0.15)
            assert row["logit_rms"] == 0


def test_every_attention_kernel_is_timed_or_explained() -> None:
    kernels, _ = attention.timed()
    assert kernels and all(row["reason"] or row["both_ms"] > 0 for row in kernels)
