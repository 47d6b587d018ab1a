"""Resuming: the same curve and weights bit for bit on the CPU, only for the run that the checkpoint belongs to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffpref.engine.step import Engine
from diffpref.run import checkpoint
from diffpref.training.settings import to_mapping
from tests.small_sdxl import read_metrics, read_weights, save_pairs, save_pipeline

Run = Callable[..., Path]
CLOCK = {"seconds_per_step", "peak_memory_gib"}


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in read_metrics(folder)]


def assert_same(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    first, second = read_weights(one), read_weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Killed(Exception):
    """Stands for a kill after a checkpoint."""


def killed_after(monkeypatch: pytest.MonkeyPatch, step: int, run: Run, **changes: Any) -> None:
    """Run until step + 1 updates are done, of which the last is in no checkpoint."""
    inside = 0
    take = Engine.step

    def counting(*arguments: Any) -> Any:
        nonlocal inside
        inside += 1
        if inside > step + 1:
            raise Killed
        return take(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", counting)
        with pytest.raises(Killed):
            run(**changes)


CASES = {
    "lora": {},
    "lora with everything": {
        "use_ema": True,
        "ema_decay": 0.9,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 1,
        "proportion_empty_prompts": 0.5,
        "random_flip": True,
        "crop": "random",
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 3,
        "logging_steps": 3,
    },
    "lora adafactor": {"optimizer": "adafactor", "use_ema": True, "mixed_precision": "bf16"},
    "full": {"adapter": "full", "use_ema": True, "gradient_accumulation_steps": 2},
    "full adafactor": {"adapter": "full", "optimizer": "adafactor", "lr_scheduler": "linear"},
}


@pytest.mark.parametrize(
    "case", [name if name == "lora with everything" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_killed_run_continues_bit_for_bit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    shared = {"max_train_steps": 8, "checkpointing_steps": 4, **CASES[case]}
    straight = run(output_dir=str(tmp_path / "straight"), **shared)
    resumed = tmp_path / "resumed"
    killed_after(monkeypatch, 4, run, output_dir=str(resumed), **shared)
    assert not (resumed / "report.html").exists()
    assert [path.name for path in checkpoint.checkpoints(resumed)] == ["checkpoint-4"]
    # What a kill while writing leaves behind.
    (resumed / ".checkpoint-8.tmp").mkdir()
    (resumed / ".checkpoint-8.tmp" / "weights.safetensors").write_bytes(b"half")
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run(output_dir=str(resumed), resume_from_checkpoint="latest", **shared)
    assert_same(straight, resumed)
    assert max(checkpoint.checkpoints(resumed)).name == "checkpoint-8"


@pytest.mark.slow
def test_a_shorter_run_is_extended(run: Run, tmp_path: Path) -> None:
    straight = run(output_dir=str(tmp_path / "straight"), max_train_steps=6)
    run(output_dir=str(tmp_path / "resumed"), max_train_steps=3, checkpointing_steps=3)
    run(output_dir=str(tmp_path / "resumed"), max_train_steps=6, resume_from_checkpoint="checkpoint-3")
    assert_same(straight, tmp_path / "resumed")


@pytest.mark.slow
def test_latest_without_a_checkpoint_starts_fresh(run: Run, tmp_path: Path) -> None:
    straight = run(output_dir=str(tmp_path / "straight"), max_train_steps=2)
    assert_same(straight, run(output_dir=str(tmp_path / "new"), max_train_steps=2, resume_from_checkpoint="latest"))


def test_latest_does_not_delete_a_finished_run(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(run(max_train_steps=1) / "checkpoint-1")
    before = (tmp_path / "run" / "pytorch_lora_weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a finished run without a checkpoint"):
        run(max_train_steps=2, resume_from_checkpoint="latest")
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").read_bytes() == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "beta": ({"beta": 2000.0}, "beta was 5000.0, is 2000.0"),
    "anchor": ({"anchor": 1.0}, "anchor was 0.0, is 1.0"),
    "adapter": ({"adapter": "full"}, "adapter was 'lora', is 'full'"),
    "rank": ({"rank": 8}, "rank was 4, is 8"),
    "optimizer": ({"optimizer": "adafactor"}, "optimizer was 'adamw', is 'adafactor'"),
    "EMA": ({"use_ema": True}, "use_ema was False, is True"),
    "seed": ({"seed": 1}, "seed was 0, is 1"),
    "batch": ({"train_batch_size": 1}, "effective_batch was 2, is 1"),
    "caption dropout": ({"proportion_empty_prompts": 0.1}, "proportion_empty_prompts was 0.0, is 0.1"),
    "resolution": ({"resolution": 16}, "data was "),
    "rows": ({"max_train_samples": 4}, "data was "),
}


@pytest.fixture(scope="session")
def half(base: Path, pairs: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("half") / "run"


@pytest.fixture
def checkpointed(run: Run, half: Path) -> Path:
    """A run with a checkpoint, made once."""
    if not half.exists():
        run(output_dir=str(half), max_train_steps=1, checkpointing_steps=1)
    return half


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_refused_and_changes_nothing(run: Run, checkpointed: Path, other: str) -> None:
    changes, message = OTHERS[other]
    before = {path: path.read_bytes() for path in checkpointed.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="belongs to another run") as refusal:
        run(output_dir=str(checkpointed), max_train_steps=2, resume_from_checkpoint="latest", **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert {path: path.read_bytes() for path in checkpointed.rglob("*") if path.is_file()} == before


def test_another_base_or_data_is_refused(run: Run, checkpointed: Path, tmp_path: Path) -> None:
    base = save_pipeline(tmp_path / "base", seed=1)
    data = save_pairs(tmp_path / "data", seed=1)
    for key, value, named in (
        ("pretrained_model_name_or_path", base, "base_model was "),
        ("dataset_name", data, "data was "),
    ):
        with pytest.raises(ValueError, match="belongs to another run") as refusal:
            run(output_dir=str(checkpointed), resume_from_checkpoint="latest", **{key: str(value)})
        assert named in str(refusal.value)


def test_other_settings_may_change(run: Run, checkpointed: Path, tmp_path: Path) -> None:
    """Batch and accumulation may trade places, and the rate may change: the data and noise stay those of the run."""
    shutil.copytree(checkpointed, tmp_path / "copy")
    changes = {"train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "max_train_steps": 2}
    folder = run(output_dir=str(tmp_path / "copy"), resume_from_checkpoint="checkpoint-1", **changes)
    assert [line["step"] for line in read_metrics(folder)] == [1, 2]


@pytest.mark.slow
def test_the_total_limit_keeps_the_newest(run: Run) -> None:
    folder = run(max_train_steps=11, checkpointing_steps=3, checkpoints_total_limit=2)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-11", "checkpoint-9"]
    # By number, not by name.
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-9", "checkpoint-11"]
    run(max_train_steps=12, checkpointing_steps=3, checkpoints_total_limit=2, resume_from_checkpoint="latest")
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-11", "checkpoint-12"]


def test_a_damaged_checkpoint_is_named(run: Run, checkpointed: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpointed, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint-1" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"checkpoint-1 cannot be read .* Resume from an earlier checkpoint"):
        run(output_dir=str(tmp_path / "copy"), resume_from_checkpoint="latest", max_train_steps=2)


def test_the_config_of_a_run_repeats_it(run: Run, settings: Callable[..., Any], tmp_path: Path) -> None:
    folder = run(max_train_steps=2)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    again = run(**{**values, "output_dir": str(tmp_path / "again")})
    assert_same(folder, again)
    assert json.loads(json.dumps(values)) == to_mapping(settings(max_train_steps=2))
