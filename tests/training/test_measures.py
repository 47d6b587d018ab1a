"""Drift and held-out rows: measured at evaluation points, without moving the run, and the same after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffpref.files.embedded import embedded
from diffpref.training.alarms import DRIFT
from diffpref.training.loop import train
from diffpref.training.rounds import Encoded
from diffpref.training.settings import from_mapping, from_yaml
from diffpref.training.steps import Steps
from tests import small_edm, small_sd3, small_sd15
from tests.drawn_pairs import save_drawn_pairs
from tests.small_sdxl import SIZE, read_metrics, read_weights

Run = Callable[..., Path]
HELD = (
    "accuracy",
    "margin",
    *(f"error/{s}/{w}" for s in ("chosen", "rejected") for w in ("policy", "reference", "ratio")),
)
MEASURED = {"drift", "error/own/policy", "error/own/reference", *(f"heldout/{name}" for name in HELD)}
MEASURE = {"holdout_rows": 2, "drift_samples": 3, "validation_batch_size": 32}
EVERY_TWO = {"validation_steps": 2, **MEASURE}


def measured(folder: Path) -> list[dict[str, float]]:
    """The measured metrics of each evaluation point."""
    found = [{name: line[name] for name in MEASURED & set(line)} for line in read_metrics(folder)]
    return [line for line in found if line]


def test_they_are_logged_at_evaluation_points_alone(run: Run) -> None:
    folder = run(**EVERY_TWO, max_train_steps=5, logging_steps=3)
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "drift" in line] == [2, 4, 5]
    # An evaluation is in a summary of its own; the summary at step 3 stays.
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    assert all(set(line) == MEASURED for line in measured(folder))
    text = (folder / "report.html").read_text()
    assert "own samples" in text and "held-out" in text


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_before_an_update_the_policy_is_the_reference(run: Run, adapter: str) -> None:
    # The rate is 0 in the first step of a warm-up, so that one step moves nothing.
    folder = run(**MEASURE, max_train_steps=1, adapter=adapter, lr_warmup_steps=5, learning_rate=1e-30)
    (found,) = measured(folder)
    ones = {name for name in MEASURED if name.endswith("ratio") or name == "drift"}
    assert {name: found[name] for name in ones} == dict.fromkeys(ones, 1.0)
    assert found["heldout/accuracy"] == 0.5 and found["heldout/margin"] == 0


@pytest.mark.slow
def test_measuring_moves_no_step(run: Run, tmp_path: Path) -> None:
    shared = {"max_train_steps": 4, "holdout_rows": 2, "use_ema": True, "ema_decay": 0.5}
    often = run(output_dir=str(tmp_path / "often"), validation_steps=2, drift_samples=3, **shared)
    never = run(output_dir=str(tmp_path / "never"), **shared)
    for one, other in zip(read_metrics(often), read_metrics(never), strict=True):
        kept = set(other) - MEASURED - {"seconds_per_step", "peak_memory_gib"}
        assert {name: one[name] for name in kept} == {name: other[name] for name in kept}
    weights, others = read_weights(often), read_weights(never)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert "drift" not in read_metrics(never)[-1] and not (never / "drift").exists()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_killed_run_resumes_to_the_same_numbers(
    run: Run, tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**EVERY_TWO, "max_train_steps": 6, "checkpointing_steps": 2, "adapter": adapter}
    shared |= {"reference_memory": "streamed"} if adapter == "full" else {"use_ema": True}
    straight = run(output_dir=str(tmp_path / "straight"), **shared)
    save = Steps._save

    def killed(self: Steps, done: int) -> None:
        save(self, done)
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(output_dir=str(tmp_path / "resumed"), **shared)
    monkeypatch.undo()
    own = (tmp_path / "resumed/drift/own.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    resumed = run(output_dir=str(tmp_path / "resumed"), resume_from_checkpoint="latest", **shared)
    assert len(measured(straight)) == 3 and measured(straight) == measured(resumed)
    alarms = [[line.get("alarm") for line in read_metrics(folder)] for folder in (straight, resumed)]
    assert alarms[0] == alarms[1]
    assert (resumed / "drift/own.safetensors").stat().st_mtime_ns == own, "the samples that it began with"


def test_held_out_rows_are_never_in_the_stream(
    settings: Callable[..., object], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Encoded] = []
    build = Steps.__init__

    def spy(self: Steps, **values: Any) -> None:
        seen.append(values["encoded"])
        build(self, **values)

    monkeypatch.setattr(Steps, "__init__", spy)
    lines: list[str] = []
    train(settings(holdout_rows=2, max_train_steps=9), say=lines.append)  # type: ignore[arg-type]
    (encoded,) = seen
    assert encoded.held_out is not None
    sides = [groups.encoded.groups for groups in (encoded.groups, encoded.held_out)]  # type: ignore[attr-defined]
    # 8 rows of 4 prompts, each twice: whole prompts are held out.
    assert [len(side) for side in sides] == [6, 2]
    assert not {group.prompt for group in sides[0]} & {group.prompt for group in sides[1]}
    assert any("held out: 2 of 8 rows" in line for line in lines)


def classes(pairs: Path, folder: Path) -> Path:
    """The pairs with classes 0 and 1 as their prompts."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for place, row in enumerate(rows):
        row |= {"prompt": str(place % 2), **{side: str(pairs.parent / row[side]) for side in ("chosen", "rejected")}}
    (folder / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "classes.jsonl"


FAMILIES = {"sd15": small_sd15, "sd3": small_sd3, "edm": small_edm}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_drift(family: str, tmp_path: Path, pairs: Path) -> None:
    base = FAMILIES[family].save_pipeline(tmp_path / "base")
    values = {
        "pretrained_model_name_or_path": str(base),
        "dataset_name": str(pairs),
        "resolution": getattr(FAMILIES[family], "SIZE", SIZE),
        "adapter": "full",
        "output_dir": str(tmp_path / "run"),
        "max_train_steps": 2,
        "logging_steps": 1,
        "num_inference_steps": 3,
        "learning_rate": 1e-2,
        **MEASURE,
    }
    if family == "edm":
        values |= {"dataset_name": str(classes(pairs, tmp_path)), "size_mismatch": "crop"}
    folder = train(from_mapping(values, "test"), say=lambda line: None)
    (found,) = measured(folder)
    assert found["drift"] > 1.001 and found["error/own/reference"] > 0
    assert len(load_file(folder / "drift/own.safetensors")["samples"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "ruined"), [(6e-3, True), (1e-4, False)])
def test_a_ruined_run_rings_and_a_mild_one_does_not(rate: float, ruined: bool, tmp_path: Path) -> None:
    """The embedded model on drawings unlike its emoji; the full runs are in tests/test_quickstart.py."""
    changes = {
        "pretrained_model_name_or_path": str(embedded("assets/tiny-sdxl")),
        "dataset_name": str(save_drawn_pairs(tmp_path / "mine")),
        "max_train_samples": 16,
        "output_dir": str(tmp_path / "run"),
        "max_train_steps": 8,
        "train_batch_size": 4,
        "learning_rate": rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "validation_prompts": ["fox", "rocket", "guitar", "teapot"],
        "num_inference_steps": 6,
        "drift_samples": 4,
    }
    base, lines = from_yaml(embedded("configs/tiny-sdxl/dpo.yaml")), list[str]()
    folder = train(from_mapping(changes, "test", base), say=lines.append)
    last = read_metrics(folder)[-1]
    assert (last["drift"] > DRIFT) == ruined == ("Drift:" in last.get("alarm", ""))
    # What the method's own alarm looks at is well, in either run.
    assert last["error/chosen/ratio"] < 1
    assert any("times that on its own samples, so they are far from what it draws" in line for line in lines)
    assert ("No alarm" in (folder / "report.html").read_text()) != ruined
