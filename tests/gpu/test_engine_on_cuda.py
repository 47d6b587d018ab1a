"""The step's modes, streaming and the measured plan on a CUDA GPU: `pytest tests/gpu`. Skipped without one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.backbones.adapters.streamed import StreamedReference
from diffpref.demo import quickstart
from diffpref.engine.memory import free_bytes
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests.small_sdxl import read_metrics, small_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MODES: dict[str, dict[str, Any]] = {
    "joint": {},
    "deferred": {"micro_batch": 1},
    "two-pass": {"micro_batch": 1},
}


def curve(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    options = quickstart.Quickstart(output_dir=folder, adapter="full" if changes.get("adapter") == "full" else "lora")
    values = {"max_train_steps": 5, "logging_steps": 1, "validation_steps": 5, **changes}
    return read_metrics(train(from_mapping(values, "the test", quickstart.settings(options)), say=lambda line: None))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_modes_agree(tmp_path: Path, precision: str) -> None:
    curves = {
        mode: curve(tmp_path / mode, loss_mode=mode, mixed_precision=precision, **changes)
        for mode, changes in MODES.items()
    }
    # Kernels differ with the batch's shape: by the rounding of the forward pass, times beta.
    tolerance = 1e-2 if precision == "no" else 0.2
    for mode in ("deferred", "two-pass"):
        assert curves[mode][0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
        for now, then in zip(curves[mode], curves["joint"], strict=True):
            assert now["loss_mode"] == mode and now["loss"] == pytest.approx(then["loss"], abs=tolerance)


def test_streaming_is_exact_and_frees_the_device(tmp_path: Path) -> None:
    network = small_unet().cuda()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    streamed = StreamedReference(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    moved = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(3):
        with streamed.loaded():
            assert all(torch.equal(p, start[name]) for name, p in network.named_parameters())
        assert all(torch.equal(p, moved[name]) for name, p in network.named_parameters())
    assert all(host.is_pinned() for host in streamed.reference + streamed.policy)
    one = curve(tmp_path / "resident", adapter="full", loss_mode="joint")
    other = curve(tmp_path / "streamed", adapter="full", loss_mode="joint", reference_memory="streamed")
    for now, then in zip(other, one, strict=True):
        assert now["loss"] == pytest.approx(then["loss"], abs=1e-2)


def test_auto_measures_the_gpu(tmp_path: Path) -> None:
    assert 0 < free_bytes(torch.device("cuda")) <= torch.cuda.mem_get_info()[1]
    assert curve(tmp_path / "auto")[0]["loss_mode"] == "joint"
    assert curve(tmp_path / "tight", memory_budget_gib=1e-3)[0]["loss_mode"] != "joint"
