"""The settings of a training run, as a record of typed values; `settings.py` reads and writes them.

Every field name is unique over the groups and the members that are chosen together, so that keys are flat in YAML and
on the command line. This file names the tables of all axes; nothing else of training looks a choice up by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from diffpref.backbones import Times
from diffpref.backbones.adapters import ADAPTERS, Adapter, LoRA
from diffpref.engine.modes import LOSS_MODES, Auto, Mode
from diffpref.objectives import DPO, OBJECTIVES
from diffpref.probes import PROBES, Forward, ProbeChoice
from diffpref.settings.axis import Axis
from diffpref.sources import SOURCES
from diffpref.sources.dataset import Dataset
from diffpref.training.groups import Average, Data, Hub, LossEngine, Model, Optimization, Run, Validation
from diffpref.training.optimizers import OPTIMIZERS, AdamW, Optimizer
from diffpref.training.rounds import Source
from diffpref.types import Objective

OF_FORM: Mapping[str, str] = {"chain_pairs": "on_policy", "real_fake": "self_play"}
"""The source of an objective's `candidates`, where no source is given; else a data set."""


def source_of(chosen: Mapping[str, type]) -> str:
    """The source where none is given: it follows from what the objective learns from."""
    return OF_FORM.get(getattr(chosen.get("objective"), "candidates", ""), "dataset")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: the choices, whose own fields are flags too, and the groups that every run has."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    objective: Annotated[Objective, Axis("objective", OBJECTIVES)] = field(default_factory=DPO)
    probe: Annotated[ProbeChoice, Axis("probe", PROBES)] = field(default_factory=Forward)
    times: Times = field(default_factory=Times)
    source: Annotated[Source, Axis("source", SOURCES, source_of)] = field(default_factory=Dataset)
    adapter: Annotated[Adapter, Axis("adapter", ADAPTERS)] = field(default_factory=LoRA)
    average: Average = field(default_factory=Average)
    optimizer: Annotated[Optimizer, Axis("optimizer", OPTIMIZERS)] = field(default_factory=AdamW)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)
    mode: Annotated[Mode | Auto, Axis("loss_mode", LOSS_MODES)] = field(default_factory=Auto)
    engine: LossEngine = field(default_factory=LossEngine)
    validation: Validation = field(default_factory=Validation)
    hub: Hub = field(default_factory=Hub)


ALIASES: Mapping[str, str] = {
    "beta_dpo": "beta",
    "train_data_dir": "dataset_name",
    "validation_prompt": "validation_prompts",
}
"""Other scripts' names for our keys."""
METHODS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("objective", "inpo"): {"objective": "dpo", "probe": "inversion"},
    ("method", "dpo"): {"objective": "dpo", "probe": "forward"},
    ("method", "inpo"): {"objective": "dpo", "probe": "inversion"},
    ("method", "smpo"): {"objective": "smpo", "probe": "inversion", "renoise": 1, "average_estimates": True},
    ("method", "rankdpo"): {"objective": "rankdpo", "probe": "forward"},
    ("method", "d3po"): {"objective": "d3po", "probe": "transition"},
    ("method", "ddo"): {"objective": "ddo", "probe": "forward"},
}
"""Names of the papers' methods, and the choices that they stand for; a key that is given itself stays as it is."""
