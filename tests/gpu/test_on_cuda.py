"""What only a CUDA GPU can show: `pytest tests/gpu`. Skipped without one."""

import json
from pathlib import Path

import pytest
import torch

from diffpref import quickstart
from diffpref.settings import from_mapping
from diffpref.training.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("xformers", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_tiny_model_trains(tmp_path: Path, adapter: str, precision: str, xformers: bool) -> None:
    options = quickstart.Quickstart(output_dir=tmp_path / "run", adapter="full" if adapter == "full" else "lora")
    changes = {
        "mixed_precision": precision,
        "enable_xformers_memory_efficient_attention": xformers,
        "max_train_steps": 20,
        "logging_steps": 1,
        "validation_steps": 20,
    }
    run = train(from_mapping(changes, "the test", quickstart.settings(options)))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(line["loss"] < float("inf") for line in lines)
    if adapter == "lora":
        assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert lines[-1]["rewards/margins"] > 0
    assert lines[-1]["peak_memory_gib"] > 0
