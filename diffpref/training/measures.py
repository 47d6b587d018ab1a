"""What a run is measured on at its evaluation points: drift, and rows that were held out."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from diffpref.probes import Batch
from diffpref.training.drift import open_drift
from diffpref.training.engine import Works
from diffpref.training.fixed import Fixed
from diffpref.training.groups import Validation
from diffpref.training.heldout import HeldOut
from diffpref.training.outlook import far
from diffpref.training.rounds import Encoded, Say
from diffpref.training.stream import Drawing

Measure = Callable[[], Mapping[str, float]]
"""Gives metrics of the weights as they are now; the main process calls it."""


def measures_of(
    works: Works,
    encoded: Encoded,
    drawing: Drawing,
    validation: Validation,
    *,
    at_once: int,
    beta: float,
    folder: Path,
    say: Say,
) -> list[Measure]:
    """The measures of a run, in the main process alone; draws the base model's own samples where they are not there.

    Args:
        at_once: images of one forward pass.
        beta: nats of a reward for each unit of the log-ratio.
        folder: where own samples are kept.
        say: told where the data are far from the base model.
    """
    if not works.accelerator.is_main_process:
        return []
    fixed = Fixed(
        family=works.family,
        models=works.models,
        accelerator=works.accelerator,
        loaded=nullcontext if works.streamed is None else works.streamed.loaded,
        drawing=drawing,
        at_once=at_once,
    )
    measures: list[Measure] = []
    if encoded.held_out is not None:
        measures.append(HeldOut(fixed=fixed, groups=encoded.held_out, beta=beta))
    if validation.drift_samples:
        drift = open_drift(fixed, encoded, validation, folder)
        measures.append(drift)
        # Steps of chains are no images; they come from the model anyway.
        if works.source.gives.batch is Batch:
            for line in far(drift.distance(encoded.groups)):
                say(line)
    return measures
