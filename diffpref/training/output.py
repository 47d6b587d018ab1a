"""What a run leaves for its user: weights that stock diffusers loads, and a model card."""

from collections.abc import Mapping
from pathlib import Path

from diffpref.backbones import Family
from diffpref.run.environment import versions
from diffpref.settings.record import fields_of
from diffpref.training.card import write_card
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
    write_card(
        folder,
        base_model=family.checkpoint.source,
        method=str(settings["objective"]),
        objective=fields_of(objective),
        dataset=str(settings["dataset_name"]),
        adapter=str(settings["adapter"]),
        words=learner.adapter.words,
        prompt=prompt,
        versions=versions(),
    )
