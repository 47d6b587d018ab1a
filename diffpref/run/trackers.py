"""Experiment trackers: are they installed, and how does each one take pictures."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from diffpref.report.grid import picture_grid

EXTRA = ("tensorboard", "wandb", "trackio")
"""Trackers of `pip install 'diffpref[trackers]'`; they get pictures too."""
OTHERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab")
"""Trackers that accelerate knows; they get numbers only."""


def check_trackers(report_to: str) -> list[str]:
    """The tracker names of a comma-separated list; "none" has no names.

    Raises:
        ValueError: a name is unknown, or its package is not installed; says what to install.
    """
    names = list(dict.fromkeys(name.strip() for name in report_to.split(",")))
    if names == ["none"]:
        return []
    for name in names:
        if name not in EXTRA + OTHERS:
            known = ", ".join(("none", *EXTRA, *OTHERS))
            raise ValueError(f"report_to must name trackers out of {known}, separated by commas; got {name!r}.")
        spec = importlib.util.find_spec(name)
        # Without an origin it is a mere folder of that name, such as the wandb/ that a run leaves behind.
        if spec is None or spec.origin is None:
            remedy = "pip install 'diffpref[trackers]'" if name in EXTRA else f"pip install {name}"
            raise ValueError(f"report_to names {name!r}, whose package must be installed and is not: {remedy}")
    return names


def start_trackers(accelerator: Accelerator, project: str, settings: Mapping[str, Any]) -> None:
    """Start the trackers that the accelerator was made with, each with the run's flat settings."""
    flat = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}
    accelerator.init_trackers(project, config=flat)


def finish_trackers(accelerator: Accelerator) -> None:
    """End every tracker. Not `end_training`: it ends the process group too, which other runs of this program use."""
    for tracker in accelerator.trackers:
        tracker.finish()


def log_pictures(
    accelerator: Accelerator, name: str, pictures: Sequence[Image.Image], step: int, captions: Sequence[str]
) -> None:
    """Sends the pictures to every tracker that takes some; only the main process does, the others return."""
    if len(captions) != len(pictures):
        raise ValueError(f"every picture needs a caption, got {len(pictures)} pictures and {len(captions)} captions.")
    if not accelerator.is_main_process or not pictures:
        return
    captioned = list(zip(pictures, captions, strict=True))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            # One labelled sheet: TensorBoard has no captions, and add_images wants all pictures of one size.
            sheet = np.asarray(picture_grid(pictures, min(8, len(pictures)), captions))
            tracker.tracker.add_images(name, sheet[None], step, dataformats="NHWC")
            tracker.tracker.flush()
        elif tracker.name == "wandb":
            wandb = importlib.import_module("wandb")
            images = [wandb.Image(picture, caption=caption) for picture, caption in captioned]
            tracker.tracker.log({name: images}, step=step)
        elif tracker.name == "trackio":
            # trackio stores a picture under its own key and drops a list of them.
            trackio = importlib.import_module("trackio")
            images = {f"{name}/{i}": trackio.Image(p, caption=caption) for i, (p, caption) in enumerate(captioned)}
            tracker.tracker.log(images, step=step)
