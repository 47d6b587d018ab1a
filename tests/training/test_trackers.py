"""Trackers: an event file that is read back, calls in the form that wandb and trackio want, and clear refusals."""

import importlib.util
import io
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image

from diffpref.run.trackers import check_trackers, log_pictures

PICTURES = [Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 16), "blue")]


class Recorder:
    """Stands for a run of wandb or trackio, and for accelerate's wrapper of it."""

    def __init__(self, name: str) -> None:
        self.name, self.tracker = name, self
        self.logged: list[tuple[dict[str, object], int | None]] = []

    def log(self, values: dict[str, object], step: int | None = None) -> None:
        self.logged.append((values, step))


@pytest.fixture
def accelerator(tmp_path: Path) -> Accelerator:
    return Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A package of that name whose Image keeps what it is given."""
    package = types.ModuleType(name)
    package.Image = lambda picture, caption: (picture.size, caption)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, package)


def test_tensorboard_gets_an_event_file_with_the_pictures(accelerator: Accelerator, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator.init_trackers("run")
    log_pictures(accelerator, "validation", PICTURES, 7, ["a red square", "a blue bar"])
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (event,) = events.Images("validation")
    assert event.step == 7
    sheet = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert sheet.getpixel((5, 5)) == (255, 0, 0) and sheet.width == 16 + 6 + 16


def test_wandb_gets_a_list_under_one_key(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "wandb")
    run = Recorder("wandb")
    accelerator.trackers = [run]
    log_pictures(accelerator, "validation", PICTURES, 7, ["a", "b"])
    assert run.logged == [({"validation": [((16, 16), "a"), ((8, 16), "b")]}, 7)]


def test_trackio_gets_a_key_for_each_picture(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "trackio")
    run = Recorder("trackio")
    accelerator.trackers = [run]
    log_pictures(accelerator, "validation", PICTURES, 7, ["a", "b"])
    assert run.logged == [({"validation/0": ((16, 16), "a"), "validation/1": ((8, 16), "b")}, 7)]


def test_other_trackers_and_other_processes_get_none(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "wandb")
    other, wandb = Recorder("mlflow"), Recorder("wandb")
    accelerator.trackers = [other]
    log_pictures(accelerator, "validation", PICTURES, 7, ["a", "b"])
    accelerator.trackers = [wandb]
    log_pictures(accelerator, "validation", [], 7, [])
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    log_pictures(accelerator, "validation", PICTURES, 7, ["a", "b"])
    assert other.logged == wandb.logged == []


def test_every_picture_needs_its_caption(accelerator: Accelerator) -> None:
    with pytest.raises(ValueError, match="2 pictures and 1 captions"):
        log_pictures(accelerator, "validation", PICTURES, 7, ["a"])


def test_names_are_split_and_none_is_nothing() -> None:
    assert check_trackers("none") == []
    assert check_trackers("tensorboard") == check_trackers(" tensorboard , tensorboard") == ["tensorboard"]


@pytest.mark.parametrize("report_to", ["tensorbord", "", "all", "tensorboard,", "none,tensorboard"])
def test_unknown_names_are_refused(report_to: str) -> None:
    with pytest.raises(ValueError, match="report_to must name trackers out of none, tensorboard, wandb, trackio"):
        check_trackers(report_to)


@pytest.mark.parametrize(
    ("name", "remedy"), [("wandb", r"pip install 'diffpref\[trackers\]'"), ("swanlab", "pip install swanlab")]
)
@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None, is_package=True)], ids=["absent", "folder only"])
def test_a_package_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, remedy: str, spec: ModuleSpec | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: spec)
    with pytest.raises(ValueError, match=f"'{name}', whose package .* {remedy}"):
        check_trackers(name)
