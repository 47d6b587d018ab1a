"""The runs of the golden record: every tiny config in three loss modes, settings that they lack, and two label worlds.

Only command lines are used here, so that the list fits any checkout. All paths are relative to the folder that
`golden_world.prepare` makes, since digests of a run depend on the paths that it was given.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MODES: Mapping[str, Mapping[str, Any]] = {
    "joint": {"loss_mode": "joint"},
    # Single candidates need scratches, and three at a time are whole groups only where a ranked list has three.
    "deferred": {"loss_mode": "deferred", "micro_batch": 1},
    "two-pass": {"loss_mode": "two-pass", "micro_batch": 3},
}
COMMON: Mapping[str, Any] = {
    "max_train_steps": 3,
    "logging_steps": 1,
    "checkpointing_steps": 3,
    "validation_steps": 3,
    "num_inference_steps": 2,
    "train_batch_size": 2,
    "max_train_samples": 8,
    "lr_warmup_steps": 0,
    # What is free on the machine stands in the plan.
    "memory_budget_gib": 4,
}
EMOJI: Mapping[str, Any] = {"validation_prompts": ("red apple", "fox")}
TWO: Mapping[str, Any] = {"gradient_accumulation_steps": 2}
CHAINS: Mapping[str, Any] = {
    "rounds": 1,
    "prompts_per_round": 2,
    "chains_per_prompt": 3,
    "chain_steps": 2,
    "train_batch_size": 3,
}
CLOTHES: Mapping[str, Any] = {
    "validation_prompts": ("3", "8"),
    "dataset_name": "clothes",
    "rounds": 1,
    "samples_per_round": 6,
    "measure": "world.py:measure",
    "measure_samples": 4,
}
# At the config's rate, which is meant for whole batches, the errors would explode and the figures be chaos.
STEADY: Mapping[str, Any] = {"validation_prompts": ("dress", "bag"), "learning_rate": 3e-6}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "tiny-edm/d3po": {**STEADY, **CHAINS, **TWO},
    "tiny-edm/ddo": {**CLOTHES, **TWO},
    "tiny-sd3/d3po": {**EMOJI, **CHAINS, "chains_per_prompt": 2, "prompts_per_round": 3},
    "tiny-sd3/ddo": {**EMOJI, "samples_per_round": 6},
    "tiny-sd3/dpo": {**EMOJI, **TWO, "use_ema": True, "ema_decay": 0.5},
    "tiny-sd3/inpo": {**EMOJI, "inversion_steps": 3},
    "tiny-sd3/rankdpo": {**EMOJI, **TWO},
    "tiny-sd3/smpo": {**EMOJI, "inversion_steps": 2},
    "tiny-sdxl/d3po": {**EMOJI, **CHAINS, **TWO, "train_guidance_scale": 2.0},
    "tiny-sdxl/ddo": {**EMOJI, "samples_per_round": 6},
    "tiny-sdxl/dpo-full": EMOJI,
    "tiny-sdxl/dpo": {**EMOJI, **TWO},
    # One step is one epoch, so that the third takes what the first has stored.
    "tiny-sdxl/inpo": {**EMOJI, "inversion_steps": 3, "max_train_samples": 2},
    "tiny-sdxl/rankdpo": EMOJI,
    "tiny-sdxl/smpo": {**EMOJI, "inversion_steps": 2},
}
ROUNDS: Mapping[str, Any] = {"rounds": 2, "max_train_steps": 2, "checkpointing_steps": 2, "validation_steps": 2}
MORE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "rounds-full": ("tiny-edm/d3po", {**STEADY, **CHAINS, **ROUNDS}),
    "rounds-lora": ("tiny-sdxl/d3po", {**CHAINS, **ROUNDS}),
    "rounds-self-play": ("tiny-edm/ddo", {**CLOTHES, **ROUNDS}),
    "fashion": ("tiny-edm/ddo", {**CLOTHES, "measure": "fashion_frechet", "measure_samples": 8, "max_train_steps": 1}),
    "stored-reference": ("tiny-sdxl/dpo", {"stored_reference": 2, "max_train_samples": 2, "reference_batch": 3}),
    "streamed": (
        "tiny-sdxl/dpo-full",
        {**TWO, "reference_memory": "streamed", "use_ema": True, "gradient_checkpointing": True},
    ),
    "auto-bf16": ("tiny-sdxl/dpo", {"mixed_precision": "bf16", "lora_backend": "peft", "random_flip": True}),
    "full-bf16": ("tiny-sd3/dpo", {"adapter": "full", "mixed_precision": "bf16", "beta": 20, "crop": "random"}),
    "policy-inverts": (
        "tiny-sdxl/smpo",
        {"inversion_model": "policy", "stored_inversions": 0, "inversion_eta": 0.1, "inversion_steps": 2},
    ),
    "compat": (
        "tiny-sdxl/inpo",
        {
            "inverter": "examples/official_inversion.py:invert_as_published",
            "stored_inversions": 0,
            "inversion_steps": 3,
        },
    ),
    "adafactor": (
        "tiny-sd3/rankdpo",
        {"optimizer": "adafactor", "shared_noise": False, "scale_lr": True, "learning_rate": 1e-5, "rank": 4},
    ),
    "pairs-of-lists": (
        "tiny-sdxl/dpo",
        {"dataset_name": "assets/emoji-lists/train.parquet", "cache_dtype": "bfloat16"},
    ),
}
"""The name of a run, its config and the settings over it."""


@dataclass(frozen=True)
class Run:
    """One call of a command."""

    name: str
    module: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """Runs that follow each other in one process and may share a cache; `outputs` are the folders to read after it."""

    name: str
    runs: tuple[Run, ...]
    outputs: Mapping[str, str]


def arguments(config: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The command line of a config with settings over it."""
    line = ["--config", f"configs/{config}.yaml"]
    for key, value in settings.items():
        line += [f"--{key}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return tuple(line)


def training(name: str, config: str, settings: Mapping[str, Any]) -> Run:
    """A training run in runs/NAME."""
    return Run(name, "diffpref.train", arguments(config, {**settings, "output_dir": f"runs/{name}"}))


def units() -> list[Unit]:
    """All units, the longest first, so that several processes end together."""
    return [*_label_worlds(), *_modes(), *_extras(), _resumed()]


def _modes() -> Iterator[Unit]:
    for config, own in CONFIGS.items():
        cache = f"caches/{config}"
        settings = {**COMMON, **own, "cache_dir": cache}
        runs = [training(f"{config}/{mode}", config, {**settings, **more}) for mode, more in MODES.items()]
        yield Unit(config, tuple(runs), {**{run.name: f"runs/{run.name}" for run in runs}, f"{config}/cache": cache})


def _extras() -> Iterator[Unit]:
    for name, (config, own) in MORE.items():
        run = training(f"more/{name}", config, {**COMMON, **EMOJI, **own})
        yield Unit(run.name, (run,), {run.name: f"runs/{run.name}"})


def _resumed() -> Unit:
    settings = {**COMMON, **EMOJI, "lr_scheduler": "constant", "checkpointing_steps": 2, "use_ema": True}
    name = "more/resumed"
    first = training(name, "tiny-sdxl/dpo", {**settings, "max_train_steps": 2})
    again = training(name, "tiny-sdxl/dpo", {**settings, "resume_from_checkpoint": "latest"})
    return Unit(name, (first, again), {name: f"runs/{name}"})


def _label_worlds() -> Iterator[Unit]:
    """The embedded models label and RankDPO learns from it; then generators that fail, and every kind of pack."""
    label = Run("label/models", "diffpref.label", ("--config", "label-models.yaml"))
    lists = {"dataset_name": "runs/label/models/packs/lists", "loss_mode": "joint"}
    learn = training("label/rankdpo", "tiny-sdxl/rankdpo-label", {**COMMON, **EMOJI, **lists})
    yield Unit("label/models", (label, learn), {run.name: f"runs/{run.name}" for run in (label, learn)})
    noise = Run("label/noise", "diffpref.label", ("--config", "label-noise.yaml"))
    more = ("--aggregator", "mean_z", "--stages", "labels", "packs", "report")
    again = Run("label/noise", "diffpref.label", (*noise.arguments, *more))
    yield Unit("label/noise", (noise,), {noise.name: "runs/label/noise"})
    other = Run("label/again", "diffpref.label", (*noise.arguments, "--output_dir", "runs/label/again"))
    over = Run("label/again", "diffpref.label", (*again.arguments, "--output_dir", "runs/label/again"))
    yield Unit("label/again", (other, over), {"label/again": "runs/label/again"})
