"""How long a run is: in steps or in epochs, one of both; and what is said of it before the first step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffpref.training.groups import Optimization
from diffpref.training.loop import train
from diffpref.training.outlook import duration, far, outlook
from diffpref.training.schedule import counted, steps_of
from diffpref.training.settings import from_mapping, from_yaml, parse, to_mapping
from tests.small_sdxl import read_metrics

Run = Callable[..., Path]
EPOCHS = {"num_train_epochs": 3}


def length(config: object) -> tuple[int | None, float | None]:
    settings = getattr(config, "optimization")  # noqa: B009
    return settings.max_train_steps, settings.num_train_epochs


def test_one_takes_the_others_place() -> None:
    assert length(from_mapping({}, "test")) == (2000, None)
    epochs = from_mapping(EPOCHS, "test")
    assert length(epochs) == (None, 3.0)
    assert length(from_mapping({"max_train_steps": 7}, "test", epochs)) == (7, None)
    assert length(from_mapping({"learning_rate": 1e-3}, "test", epochs)) == (None, 3.0)
    assert from_mapping(to_mapping(epochs), "again") == epochs, "config.yaml gives the same run"


def test_a_flag_replaces_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("max_train_steps: 60\n")
    assert length(parse(["--config", str(file), "--num_train_epochs", "2.5"])) == (None, 2.5)
    file.write_text("num_train_epochs: 4\n")
    assert length(from_yaml(file)) == (None, 4.0)
    assert length(parse(["--config", str(file), "--max_train_steps", "9"])) == (9, None)


def test_both_and_none_are_refused() -> None:
    with pytest.raises(ValueError, match="test: max_train_steps and num_train_epochs say the same thing: give one"):
        from_mapping({**EPOCHS, "max_train_steps": 5}, "test")
    with pytest.raises(ValueError, match="give either max_train_steps or num_train_epochs, got None and None"):
        train(from_mapping({"max_train_steps": None}, "test"))
    with pytest.raises(ValueError, match="give either max_train_steps or num_train_epochs, got 2000 and 3"):
        train(replace(from_mapping({}, "test"), optimization=Optimization(num_train_epochs=3.0)))
    with pytest.raises(ValueError, match="num_train_epochs must be above 0, got 0"):
        from_mapping({"num_train_epochs": 0}, "test")


@pytest.mark.parametrize(
    ("epochs", "groups", "batch", "accumulation", "processes", "steps"),
    [
        (3, 48, 4, 2, 1, 18),
        (3, 48, 4, 2, 3, 6),
        (1, 50, 8, 1, 1, 7),
        (0.5, 9, 1, 1, 1, 5),
        (0.1, 3, 8, 1, 1, 1),
        # 0.3 of 10 in floating point is a little more than 3.
        (0.3, 10, 1, 1, 1, 3),
    ],
)
def test_epochs_are_counted_as_steps(
    epochs: float, groups: int, batch: int, accumulation: int, processes: int, steps: int
) -> None:
    settings = Optimization(
        max_train_steps=None,
        num_train_epochs=epochs,
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    assert steps_of(counted(settings, groups=groups, processes=processes)) == steps
    assert counted(Optimization(), groups=groups, processes=processes) == Optimization()


def test_a_run_of_epochs_takes_their_steps_and_says_so(settings: Callable[..., object], tmp_path: Path) -> None:
    lines: list[str] = []
    changes = {"max_train_steps": None, "num_train_epochs": 1.5, "holdout_rows": 2, "lr_scheduler": "linear"}
    folder = train(settings(**changes), say=lines.append)  # type: ignore[arg-type]
    metrics = read_metrics(folder)
    # 6 of 8 rows in steps of 2 pairs: 1.5 epochs are 4.5 steps, so 5; the rate falls to 0 over these.
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5] and metrics[-1]["epoch"] == pytest.approx(10 / 6)
    assert metrics[-1]["learning_rate"] == 0
    assert "5 steps of 2 pairs: 20 images; 1.67 epochs of 6 pairs" in lines
    assert length(from_yaml(folder / "config.yaml")) == (None, 1.5)


def test_the_outlook_of_a_resumed_run_knows_its_rate(run: Run) -> None:
    folder = run(max_train_steps=3)
    plan = {"batch": 16, "k": 2, "groups": 48_210}
    assert outlook(steps=2000, first=0, run=folder, **plan) == (
        "2000 steps of 16 pairs: 64,000 images; 0.664 epochs of 48,210 pairs"
    )
    later = outlook(steps=2000, first=500, run=folder, **plan)
    assert later.startswith("1500 steps of 16 pairs: 48,000 images, from step 500 on; 0.664 epochs")
    assert "; about " in later and "s a step" in later


def test_few_pairs_too_often_are_warned_of_before_the_first_step(tmp_path: Path) -> None:
    line, warning = outlook(steps=160, first=0, batch=16, k=2, groups=48, run=tmp_path).splitlines()
    assert line == "160 steps of 16 pairs: 5,120 images; 53.3 epochs of 48 pairs"
    assert warning.startswith("warning: fewer than 500 pairs") and "30 steps" in warning
    assert len(outlook(steps=30, first=0, batch=16, k=2, groups=48, run=tmp_path).splitlines()) == 1
    assert "lists of 4" in outlook(steps=1, first=0, batch=2, k=4, groups=48, run=tmp_path)


def test_times_and_distances_in_words() -> None:
    assert [duration(s) for s in (5, 90, 36_000, 5400)] == ["5 seconds", "1.5 minutes", "10 hours", "1.5 hours"]
    assert far(2.9) == [] and "3.4 times" in far(3.4)[0]
