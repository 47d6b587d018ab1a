"""The settings of a labelling run, as a record of typed values; `settings.py` reads and writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from diffpref.label.aggregators import AGGREGATOR, check_names
from diffpref.label.entries import GeneratorSettings, PackSettings, RewardUse
from diffpref.label.executors import EXECUTOR, Executor
from diffpref.label.executors.local import Local
from diffpref.label.filter import ImageChecks
from diffpref.label.prompts import PromptSettings
from diffpref.rewards.aggregators import Aggregator, WinCount
from diffpref.settings.typed import nearest

STAGES = ("images", "filter", "scores", "labels", "packs", "report")


@dataclass(frozen=True)
class Labels:
    """What the labels need, whatever the aggregator."""

    weights: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """The say of each reward by name; 1 where absent."""


@dataclass(frozen=True)
class Run:
    """Where and how the run happens; nothing here changes an image, but for seed, shard_size and threads_per_worker."""

    output_dir: Path = Path("diffpref-labels")
    seed: int = 0
    """Every image's own seed follows from it, the prompt, the generator and the sample's number."""
    shard_size: Annotated[int, Ge(1)] = 256
    """Prompts of a shard, the unit of work: what a killed run loses at most, once for each worker."""
    threads_per_worker: Annotated[int, Ge(0)] = 0
    """Threads of each worker's torch on the CPU, whatever the executor; 0 is torch's own choice. Bytes are equal for
    equal threads only."""
    retries: Annotated[int, Ge(0)] = 1
    """How often an image that failed is drawn again: from its own seed first, then from seeds that follow it."""
    max_failure_share: Annotated[float, Ge(0), Le(1)] = 0.05
    """A shard with a larger share of failures (and more than three) stops the run."""
    stages: tuple[str, ...] = ()
    """Do only these: images filter scores labels packs report; all where empty."""

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"stages must be among {', '.join(STAGES)}, got {stage!r}.{nearest(stage, STAGES)}")


@dataclass(frozen=True)
class LabelConfig:
    """A labelling run."""

    prompts: PromptSettings
    generators: tuple[GeneratorSettings, ...] = ()
    rewards: tuple[RewardUse, ...] = ()
    packs: tuple[PackSettings, ...] = (PackSettings("lists"),)
    aggregator: Annotated[Aggregator, AGGREGATOR] = field(default_factory=WinCount)
    labels: Labels = field(default_factory=Labels)
    checks: ImageChecks = field(default_factory=ImageChecks)
    executor: Annotated[Executor, EXECUTOR] = field(default_factory=Local)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if not self.generators:
            raise ValueError("generators is empty: name at least one.")
        if not any(not reward.held_out for reward in self.rewards):
            raise ValueError("rewards is empty: name at least one that is not held out.")
        for key in ("generators", "rewards", "packs"):
            names = [entry.name for entry in getattr(self, key)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key}: the name {twice!r} is given twice; give each its own `name`.")
        candidates = sum(generator.samples for generator in self.generators)
        if candidates < 2:
            raise ValueError("one image per prompt cannot be compared: add a generator, or set its samples to 2.")
        rewards = [reward.name for reward in self.rewards]
        check_names("weights", self.labels.weights, rewards)
        self.aggregator.check(rewards)
        for pack in self.packs:
            try:
                pack.form.check(candidates)
            except ValueError as problem:
                raise ValueError(f"pack {pack.name!r}: {problem}") from None
