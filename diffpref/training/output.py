"""What a run leaves for its user: weights that stock diffusers loads, and a model card."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from diffpref.backbones import Family
from diffpref.backbones.adapters import Adapter
from diffpref.backbones.loading import absent_parts
from diffpref.files import atomic
from diffpref.run.environment import versions
from diffpref.settings.record import fields_of
from diffpref.training.card import Base, write_card
from diffpref.training.learner import Learner
from diffpref.types import Objective


def save_output(
    learner: Learner, family: Family, objective: Objective, settings: Mapping[str, object], folder: Path, prompt: str
) -> None:
    """Write the trained weights as the adapter does, and README.md, to the output directory.

    With an average (EMA) it is the averaged weights that are written, as the diffusers scripts do.

    Args:
        settings: the run's flat keys, for the names on the card.
        prompt: for the card's example; may be empty.
    """
    with learner.averaged():
        learner.adapter.save(learner.network, family, folder)
    describe_output(learner.adapter, family, objective, settings, folder, prompt)


def describe_output(
    adapter: Adapter, family: Family, objective: Objective, settings: Mapping[str, object], folder: Path, prompt: str
) -> None:
    """Write README.md, and what else a pipeline's folder needs, for the weights that are there; see `save_output`."""
    if not adapter.added:
        family.save_index(folder)
    write_card(
        folder,
        base=Base(
            checkpoint=family.checkpoint,
            component=family.component,
            pipeline=family.pipeline,
            call=family.call,
            absent=absent_parts(family.checkpoint),
        ),
        method=str(settings["objective"]),
        objective=fields_of(objective),
        dataset=str(settings["dataset_name"]),
        adapter=str(settings["adapter"]),
        words=adapter.words,
        prompt=prompt,
        versions=versions(),
    )


def put_weights(result: Path, folder: Path, component: str) -> None:
    """Let the folder hold the weights of another one too: as links, where the disk has them, so that no byte is twice.

    Args:
        component: the pipeline's folder of the network that was trained.
    """
    for path in result.glob("*.safetensors"):
        with atomic.replacing(folder / path.name) as temporary:
            _link(path, temporary)
    if (result / component).is_dir():
        with atomic.new_folder(folder / component) as new:
            for path in (result / component).iterdir():
                _link(path, new / path.name)


def _link(path: Path, target: Path) -> None:
    """A second name of the file, or a copy where the disk has no links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
