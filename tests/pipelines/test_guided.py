"""Guidance by preference over stock pipelines: 0 is the base and 1 the tuned model, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffpref.pipelines import load, preference_guidance
from tests.small_sdxl import SIZE

PROMPT = "red cat"


def draw(pipe: Any, **options: Any) -> np.ndarray:
    """A float image: rounding to eight bits would hide small differences."""
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 4, "guidance_scale": 3.0} | options
    return pipe(PROMPT, generator=torch.Generator().manual_seed(1), output_type="np", **options).images[0]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [("sdxl", "lora"), ("sdxl", "full"), ("sd15", "lora"), ("sd3", "lora"), ("sd3", "full")],
)
def test_zero_is_the_base_and_one_the_tuned_model(
    stock: Callable[..., Any], runs: Callable[..., Path], family: str, adapter: str
) -> None:
    base = draw(stock(family))
    pipe = load(stock(family), runs(family, adapter))
    tuned = draw(pipe)
    assert np.abs(tuned - base).max() > 1e-3
    found = {}
    for scale in (0, 1, 0.5, 2):
        with preference_guidance(pipe, scale):
            found[scale] = draw(pipe)
    assert np.array_equal(found[0], base) and np.array_equal(found[1], tuned)
    for scale in (0.5, 2):
        assert np.abs(found[scale] - base).max() > 1e-4 and np.abs(found[scale] - tuned).max() > 1e-4
    assert np.array_equal(draw(pipe), tuned), "afterwards the pipeline is as before"
