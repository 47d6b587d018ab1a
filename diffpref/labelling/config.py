"""The settings of a labelling run: prompts, generators, rewards, how scores become labels, and what is packed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffpref.labelling.prompts import PromptSettings
from diffpref.settings.typed import nearest

NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
"""Names become folders and parts of picture ids."""


def check_name(kind: str, name: str) -> None:
    """Raise ValueError where a name of the user's cannot be a folder's."""
    if not NAME.fullmatch(name) or (kind == "generator" and "." in name):
        dots = "" if kind == "generator" else " or ."
        raise ValueError(f"the {kind} name must consist of letters, digits and _, joined by -{dots}, got {name!r}.")


@dataclass(frozen=True)
class GeneratorSettings:
    """One source of pictures: a diffusers pipeline with its own settings, or a function of yours."""

    name: str
    """A short name, which becomes part of every picture's id."""
    pretrained_model_name_or_path: str = ""
    """A folder with a diffusers pipeline, or the name of one on the hub."""
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    pipeline: str = ""
    """A pipeline class of diffusers, where the checkpoint's own is not wanted."""
    scheduler: str = ""
    """A scheduler class of diffusers, made from the checkpoint's scheduler and `scheduler_options`."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    lora: str = ""
    """A LoRA file or folder that is loaded over the pipeline."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """More keyword arguments of `from_pretrained`."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the pipeline's call: num_inference_steps, guidance_scale, height, width, negative_prompt."""
    cpu_offload: bool = False
    """Keep on the GPU only the model that is at work."""
    function: str = ""
    """Instead of a pipeline, module:function or file.py:function; called with (device), it returns a function of
    (prompts, seeds) that returns one PIL picture a prompt."""
    samples: int = 1
    """Pictures of each prompt."""
    batch_size: int = 4
    """Pictures that are drawn at once."""

    def __post_init__(self) -> None:
        check_name("generator", self.name)
        if bool(self.pretrained_model_name_or_path) == bool(self.function):
            raise ValueError(f"generator {self.name!r} needs either pretrained_model_name_or_path or function.")
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of generator {self.name!r} must be 1 or above, got {getattr(self, name)}.")
        ours = {"prompt", "generator", "output_type", "num_images_per_prompt", "return_dict"} & set(self.call)
        if ours:
            raise ValueError(f"call of generator {self.name!r} must not set {sorted(ours)[0]}: the engine does.")


@dataclass(frozen=True)
class RewardUse:
    """One reward of the run, under a name that its scores are kept by."""

    name: str
    reward: str
    """A name that `find_reward` takes."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_out: bool = False
    """Scored and reported, but without a say in the labels: the guard against a hacked reward."""
    batch_prompts: int = 8
    """Prompts whose pictures are handed to the reward at once."""

    def __post_init__(self) -> None:
        check_name("reward", self.name)
        if self.batch_prompts < 1:
            raise ValueError(f"batch_prompts of reward {self.name!r} must be 1 or above, got {self.batch_prompts}.")


@dataclass(frozen=True)
class PackSettings:
    """One data set that training reads."""

    name: str
    form: Literal["lists", "pairs", "pickapic"] = "lists"
    """Ranked lists; pairs; or pairs in the columns of Pick-a-Pic."""
    pairs: Literal["all", "best_worst"] = "all"
    """pairs, pickapic: every two pictures of a prompt, or its extremes only."""
    min_gap: float = 0.0
    """pairs, pickapic: leave out pairs whose phi differ by less."""
    same_generator: bool = False
    """pairs, pickapic: only pairs by one generator, so that no style is taught."""
    min_candidates: int = 0
    """lists: the least number of pictures of a prompt; 0 asks for all that were planned, so that lists have one length
    as RankDPO needs."""

    def __post_init__(self) -> None:
        check_name("pack", self.name)
        if not 0 <= self.min_gap <= 1:
            raise ValueError(f"min_gap of pack {self.name!r} must be in [0, 1], got {self.min_gap}.")
        if self.min_candidates < 0 or self.min_candidates == 1:
            raise ValueError(
                f"min_candidates of pack {self.name!r} must be 0 or at least 2, got {self.min_candidates}."
            )


@dataclass(frozen=True)
class Labels:
    """How pictures are filtered and scores become phi, the label in [0, 1]."""

    aggregator: Literal["win_count", "win_prob", "mean_z", "pareto"] = "win_count"
    """win_count is Syn-Pic's phi; win_prob CaPO's; mean_z the mean standardised score; pareto the front's number."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The say of each reward by name; 1 where absent."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """win_prob: the score difference of each reward that is one nat; 1 where absent."""
    duplicate_pictures: Literal["flag", "drop"] = "flag"
    """What happens to a picture that looks like an earlier one of its prompt."""
    duplicate_bits: int = 6
    """Two pictures are near-duplicates where their 256-bit difference hashes differ in at most this many bits."""
    black_level: int = 8
    """A picture without a brighter pixel is black, as safety checkers return it; 0 to 255."""
    flat_std: float = 1.5
    """A picture whose grey levels deviate less is flat; 0 to 255."""

    def __post_init__(self) -> None:
        for kind in ("weights", "temperatures"):
            for name, value in getattr(self, kind).items():
                if not value > 0:
                    raise ValueError(f"{kind} must be above 0, got {value} for {name!r}.")
        if not 0 <= self.duplicate_bits <= 256:
            raise ValueError(f"duplicate_bits must be in [0, 256], got {self.duplicate_bits}.")


@dataclass(frozen=True)
class Run:
    """Where and how the run happens; nothing here changes a picture, but for seed and shard_size."""

    output_dir: Path = Path("diffpref-labels")
    seed: int = 0
    """Every picture's own seed follows from it, the prompt, the generator and the sample's number."""
    shard_size: int = 256
    """Prompts of a shard, the unit of work: what a killed run loses at most, once for each worker."""
    executor: Literal["local", "ranks", "slurm", "ray"] = "local"
    """local processes; the ranks of accelerate launch or torchrun; a SLURM array; or a Ray cluster."""
    workers: int = 0
    """local, ray, slurm: workers at once; 0 is one a GPU, or one without a GPU."""
    threads_per_worker: int = 0
    """Threads of each worker's torch on the CPU; 0 is torch's own choice. Bytes are equal for equal threads only."""
    retries: int = 1
    """How often a picture that failed is drawn again: from its own seed first, then from seeds that follow it."""
    max_failure_share: float = 0.05
    """A shard with a larger share of failures (and more than three) stops the run."""
    stages: tuple[str, ...] = ()
    """Do only these: images filter scores labels packs report; all where empty."""
    ray_address: str = ""
    """ray: the cluster's address; by default RAY_ADDRESS, else a cluster on this machine."""
    gpus_per_worker: float = 1.0
    """ray: share of a GPU that each worker asks for, where the cluster has GPUs."""

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("workers", 0), ("threads_per_worker", 0), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or above, got {getattr(self, name)}.")
        if not 0 <= self.max_failure_share <= 1:
            raise ValueError(f"max_failure_share must be in [0, 1], got {self.max_failure_share}.")
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"stages must be among {', '.join(STAGES)}, got {stage!r}.{nearest(stage, STAGES)}")


STAGES = ("images", "filter", "scores", "labels", "packs", "report")


@dataclass(frozen=True)
class LabelConfig:
    """A labelling run."""

    prompts: PromptSettings
    generators: tuple[GeneratorSettings, ...]
    rewards: tuple[RewardUse, ...]
    packs: tuple[PackSettings, ...] = (PackSettings("lists"),)
    labels: Labels = field(default_factory=Labels)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if not self.generators:
            raise ValueError("generators is empty: name at least one.")
        if not any(not reward.held_out for reward in self.rewards):
            raise ValueError("rewards is empty: name at least one that is not held out.")
        for kind in ("generators", "rewards", "packs"):
            names = [entry.name for entry in getattr(self, kind)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind}: the name {twice!r} is given twice; give each its own `name`.")
        if self.candidates < 2:
            raise ValueError("one picture a prompt cannot be compared: add a generator, or set its samples to 2.")
        for kind in ("weights", "temperatures"):
            for name in getattr(self.labels, kind):
                if name not in self.names:
                    raise ValueError(f"{kind} names the reward {name!r}, but there are {', '.join(self.names)}.")
        for pack in self.packs:
            if pack.min_candidates > self.candidates:
                raise ValueError(
                    f"min_candidates of pack {pack.name!r} is {pack.min_candidates}, but a prompt has at most "
                    f"{self.candidates} pictures."
                )

    @property
    def candidates(self) -> int:
        """Pictures that are planned for each prompt."""
        return sum(generator.samples for generator in self.generators)

    @property
    def names(self) -> list[str]:
        """The rewards' names."""
        return [reward.name for reward in self.rewards]
