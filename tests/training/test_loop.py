"""The loop: exact at step 0, it learns, and the same batch gives the same weights however it is cut."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from diffpref.backbones.sdxl import SDXL, SDXLEncoder
from diffpref.engine import runner
from diffpref.engine.step import Engine
from diffpref.probe import forward_probe
from diffpref.probes import forward
from diffpref.training.settings import to_mapping
from diffpref.types import Probe
from tests.small_sdxl import read_metrics, read_weights, save_pairs

Run = Callable[..., Path]
ROOT = Path(__file__).parents[2]
LOG_2 = math.log(2)
ROUNDING = 5e-4
"""Nats: beta 5000 times 1e-7, the rounding in float32 of an error near 1 when a batch is cut otherwise."""
both = pytest.mark.parametrize("adapter", ["lora", "full"])


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_equals_reference_at_step_0(run: Run, adapter: str, checkpointing: bool) -> None:
    first = read_metrics(run(adapter=adapter, max_train_steps=1, gradient_checkpointing=checkpointing))[0]
    assert first["loss"] == pytest.approx(LOG_2, abs=1e-7)  # float32
    assert first["rewards/accuracies"] == 0.5
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    assert first["error/chosen/ratio"] == first["error/rejected/ratio"] == 1.0


QUICK = {
    "lora": {"learning_rate": 2e-3, "rank": 8},
    "full": {"adapter": "full", "learning_rate": 1e-4},
}


@pytest.mark.parametrize("sign", [1, -1], ids=["", "wrong sign"])
@both
def test_it_learns(run: Run, v_base: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, sign: int) -> None:
    """The margin rises, and falls with the gradient's sign planted wrong."""
    right = Accelerator.backward
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: right(self, sign * loss))
    shared = {"train_batch_size": 4, "beta": 500.0, "logging_steps": 10, "max_train_steps": 30 if sign == 1 else 10}
    last = read_metrics(run(pretrained_model_name_or_path=str(v_base), **shared, **QUICK[adapter]))[-1]
    if sign == 1:
        assert last["rewards/margins"] > 1
        assert last["rewards/accuracies"] > 0.9
        assert last["loss"] < LOG_2 / 2
    else:
        assert last["rewards/margins"] < 0
        assert last["rewards/accuracies"] < 0.5


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_accumulation_equals_a_larger_batch(run: Run, adapter: str, tmp_path: Path) -> None:
    results = []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        folder = run(
            output_dir=str(tmp_path / f"{size}"),
            adapter=adapter,
            train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_train_steps=3,
            proportion_empty_prompts=0.5,
            learning_rate=1e-4,
            # Adam divides a gradient by itself, which would turn rounding of tiny ones into whole steps.
            adam_epsilon=1e-4,
        )
        results.append((read_weights(folder), read_metrics(folder)))
    (weights, metrics), *others = results
    start = read_metrics(tmp_path / "4")[0]
    assert start["epoch"] == 0.5
    for other, other_metrics in others:
        for name, tensor in weights.items():
            # float32 sums in another order; three steps move weights by up to 3e-4.
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=3e-6)
        for now, then in zip(other_metrics, metrics, strict=True):
            assert now["loss"] == pytest.approx(then["loss"], abs=ROUNDING)
            assert now["error/chosen/policy"] == pytest.approx(then["error/chosen/policy"], rel=1e-4)
            # The norm before clipping: clipping would hide a gradient of another scale.
            assert now["grad_norm"] == pytest.approx(then["grad_norm"], rel=1e-2)


def test_the_order_of_the_pictures_in_a_row_does_not_matter(run: Run, tmp_path: Path) -> None:
    save_pairs(tmp_path / "data", count=4)
    curves = []
    for name, step in (("given", 1), ("swapped", -1)):
        rows = [
            {"prompt": "red cat", "images": [f"chosen-{i}.png", f"rejected-{i}.png"][::step], "scores": [2, 1][::step]}
            for i in range(4)
        ]
        data = tmp_path / "data" / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        curves.append(read_metrics(run(output_dir=str(tmp_path / name), dataset_name=str(data), learning_rate=1e-4)))
    for first, second in zip(*curves, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=ROUNDING)
        assert first["rewards/margins"] == pytest.approx(second["rewards/margins"], abs=2 * ROUNDING)


def test_gradient_checkpointing_changes_nothing(run: Run, tmp_path: Path) -> None:
    plain = run(output_dir=str(tmp_path / "a"), max_train_steps=2)
    saved = run(output_dir=str(tmp_path / "b"), max_train_steps=2, gradient_checkpointing=True)
    for name, tensor in read_weights(plain).items():
        assert torch.equal(tensor, read_weights(saved)[name]), name


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_bfloat16_trains_float32_weights(run: Run, monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    predict = runner.predict

    def spy(*arguments: Any) -> torch.Tensor:
        found = predict(*arguments)
        seen.add((torch.is_autocast_enabled("cpu"), found.dtype))
        return found

    monkeypatch.setattr(runner, "predict", spy)
    folder = run(adapter=adapter, mixed_precision="bf16", max_train_steps=3, learning_rate=1e-4)
    first = read_metrics(folder)[0]
    assert all(tensor.dtype == torch.float32 for tensor in read_weights(folder).values())
    assert first["rewards/margins"] == 0.0 and first["loss"] == pytest.approx(LOG_2, abs=1e-7)
    assert first["error/chosen/ratio"] == 1
    # Float32 weights are cast by autocast, which accelerate turns back at the end; LoRA's base is in bfloat16 itself.
    assert seen == {(True, torch.float32) if adapter == "full" else (False, torch.bfloat16)}
    assert read_metrics(folder)[-1]["loss"] < 10


def test_no_encoder_is_in_memory_while_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[bool] = []
    encoders: list[weakref.ref] = []
    load = SDXL.load_encoder

    def spy_load(*arguments: Any) -> SDXLEncoder:
        encoder = load(*arguments)
        parts = (encoder, encoder.vae, encoder.pipeline.text_encoder, encoder.pipeline.text_encoder_2)
        encoders.extend(weakref.ref(part) for part in parts)
        return encoder

    take = Engine.step

    def spy_step(*arguments: Any) -> Any:
        alive.extend(reference() is not None for reference in encoders)
        return take(*arguments)

    monkeypatch.setattr(SDXL, "load_encoder", spy_load)
    monkeypatch.setattr(Engine, "step", spy_step)
    run(max_train_steps=1, validation_prompts=["red cat"])
    assert len(alive) == 4 and not any(alive)


@pytest.mark.slow
def test_tensorboard_gets_metrics_and_pictures(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(report_to="tensorboard", validation_prompts=["red cat", "a dog"], validation_steps=2)
    events = EventAccumulator(str(next(folder.rglob("events.out*")).parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")] == [0, 2, 4]
    logged = {event.step: event.value for event in events.Scalars("rewards/margins")}
    assert all(logged[m["step"]] == pytest.approx(m["rewards/margins"]) for m in read_metrics(folder))


def test_a_schedule_is_stepped_once_for_each_update(run: Run) -> None:
    metrics = read_metrics(
        run(lr_scheduler="linear", lr_warmup_steps=2, gradient_accumulation_steps=2, learning_rate=1e-3)
    )
    # The rate that the next update uses: warm-up over two, then down to 0 at step 4.
    assert [m["learning_rate"] for m in metrics] == pytest.approx([5e-4, 1e-3, 5e-4, 0.0])


def test_a_loss_that_is_not_finite_stops_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "forward_probe", lambda *arguments: broken(forward_probe(*arguments)))
    with pytest.raises(ValueError, match="step 1: the loss is nan"):
        run()


def broken(probe: Probe) -> Probe:
    return dataclasses.replace(probe, target=probe.target * float("nan"))


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_two_processes_equal_one_with_twice_the_batch(
    run: Run, settings: Callable[..., Any], tmp_path: Path, adapter: str
) -> None:
    changes = {
        "adapter": adapter,
        "max_train_steps": 3,
        "learning_rate": 1e-4,
        "adam_epsilon": 1e-4,
        "proportion_empty_prompts": 0.5,
        "cache_dir": None,
        "checkpointing_steps": 2,
    }
    one = run(output_dir=str(tmp_path / "one"), train_batch_size=4, **changes)
    two = to_mapping(settings(output_dir=str(tmp_path / "two"), train_batch_size=2, **changes))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCH, "-m", "diffpref.train", "--config", str(tmp_path / "two.yaml")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    for name, tensor in read_weights(one).items():
        torch.testing.assert_close(read_weights(tmp_path / "two")[name], tensor, rtol=0, atol=3e-6)
    for now, then in zip(read_metrics(tmp_path / "two"), read_metrics(one), strict=True):
        assert now["loss"] == pytest.approx(then["loss"], abs=ROUNDING)
        assert now["epoch"] == then["epoch"] and now["grad_norm"] == pytest.approx(then["grad_norm"], rel=1e-2)
