"""What only a CUDA GPU can show: `pytest tests/gpu`. Skipped without one."""

import json
from pathlib import Path

import pytest
import torch

from diffpref.demo import quickstart
from diffpref.files.embedded import embedded
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping, from_yaml

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
    done = train(from_mapping(changes, "the test", quickstart.settings(options)))
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(line["loss"] < float("inf") for line in lines)
    if adapter == "lora":
        assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert lines[-1]["rewards/margins"] > 0
    assert lines[-1]["peak_memory_gib"] > 0


@pytest.mark.parametrize("method", ["dpo", "inpo", "smpo", "rankdpo", "d3po", "ddo"])
@pytest.mark.parametrize("backbone", ["tiny-sdxl", "tiny-sd3"])
def test_every_method_trains(tmp_path: Path, backbone: str, method: str) -> None:
    base = from_yaml(embedded(f"configs/{backbone}/{method}.yaml"))
    changes = {
        "pretrained_model_name_or_path": str(embedded(base.model.pretrained_model_name_or_path)),
        "dataset_name": str(embedded(base.data.dataset_name)),
        "output_dir": str(tmp_path / "run"),
        "max_train_steps": 20,
        "logging_steps": 1,
        "validation_steps": 20,
        "rounds": 1,
        "prompts_per_round": 8,
    }
    done = train(from_mapping(changes, "the test", base), say=lambda line: None)
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(line["loss"] < float("inf") for line in lines)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
