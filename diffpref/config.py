"""The settings of a training run: typed groups, read from YAML, then overridden on the command line.

Flag names are those of the diffusers training scripts. Keys are flat in YAML and on the command line: every field name
is unique over all groups. Only this module knows how settings are read; the loop sees frozen dataclasses.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffpref.objectives import DPO


@dataclass(frozen=True)
class Model:
    """The base model; it is also the reference."""

    pretrained_model_name_or_path: str = ""
    """A folder with a diffusers pipeline, or the name of one on the hub."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, for instance madebyollin/sdxl-vae-fp16-fix."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    variant: str | None = None
    """Variant of the weight files, for instance fp16."""


@dataclass(frozen=True)
class Data:
    """Preferences: a file, a folder or a data set on the hub, in any schema that `diffpref data` reads."""

    dataset_name: str = ""
    """A parquet, JSON, CSV or tar file, a folder of those, a folder with w/ and l/, or a name on the hub."""
    dataset_split: str = "train"
    """The split of a saved or hub data set."""
    columns: tuple[str, ...] = ()
    """Column names that differ from the schema's, as prompt=my_caption chosen=better."""
    max_train_samples: int | None = None
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out, count it and say so."""
    size_mismatch: Literal["error", "crop"] = "error"
    """Pictures of different sizes in one row: stop, or resize and crop each to the resolution."""
    lists: Literal["all", "best_worst"] = "all"
    """Which pairs a ranked list gives."""
    resolution: int = 1024
    """Side of the training pictures, in pixels; pictures are resized on the shorter side and cropped."""
    crop: Literal["center", "random"] = "center"
    """Where to crop; a random crop is drawn once for a group and shared by its pictures."""
    random_flip: bool = False
    """Mirror half of the groups; all pictures of a group are mirrored together."""
    proportion_empty_prompts: float = 0.2
    """Share of groups trained with the empty prompt, in [0, 1]; Diffusion-DPO uses 0.2."""
    cache_dir: Path | None = None
    """Where latents and text embeddings are kept; by default `cache` in the output directory."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the kept latents and text embeddings."""


@dataclass(frozen=True)
class Adapter:
    """What is trained."""

    adapter: Literal["lora", "full"] = "lora"
    """LoRA, or all weights of the network (which needs a second copy as the reference)."""
    rank: int = 64
    """Rank of the LoRA matrices; alpha equals it, so the effective scale is 1."""
    lora_target_modules: tuple[str, ...] = ()
    """Names of the layers that get LoRA; by default the attention projections of the backbone."""
    use_ema: bool = False
    """Keep an exponential moving average of the trained weights; samples and the output are the average's."""
    ema_decay: float = 0.999
    """Share of the old average that each training step keeps, in [0, 1)."""


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule."""

    learning_rate: float = 1e-5
    scale_lr: bool = False
    """Multiply the learning rate by the effective batch, as the published launchers do."""
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "constant_with_warmup"
    lr_warmup_steps: int = 0
    max_train_steps: int = 2000
    train_batch_size: int = 1
    """Groups of one forward pass, for each process."""
    gradient_accumulation_steps: int = 1


@dataclass(frozen=True)
class Run:
    """Where and how the run happens."""

    output_dir: Path = Path("diffpref-run")
    overwrite_output_dir: bool = False
    """Delete what another run left in the output directory (the cache stays)."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    allow_tf32: bool = False
    enable_xformers_memory_efficient_attention: bool = False
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    """`latest`, or the name of a checkpoint in the output directory."""
    logging_steps: int = 10
    """Training steps between two lines of metrics.jsonl."""
    report_to: str = "none"
    """Trackers, comma separated: tensorboard, wandb, trackio. metrics.jsonl and report.html are always written."""
    tracker_name: str = "diffpref"


@dataclass(frozen=True)
class Validation:
    """Pictures of fixed prompts and seeds while training."""

    validation_prompts: tuple[str, ...] = ()
    validation_steps: int = 500
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    validation_batch_size: int = 4
    """Pictures that are sampled at once."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The objective's fields (beta, anchor, sft) are flags too."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    objective: DPO = field(default_factory=DPO)
    adapter: Adapter = field(default_factory=Adapter)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)
    validation: Validation = field(default_factory=Validation)


OBJECTIVES: Mapping[str, type] = {"dpo": DPO}
ALIASES: Mapping[str, str] = {
    "beta_dpo": "beta",
    "train_data_dir": "dataset_name",
    "validation_prompt": "validation_prompts",
}
"""Other scripts' names for our keys."""


def _groups(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    for group in dataclasses.fields(config):
        yield group.name, getattr(config, group.name)


def _fields(config: TrainConfig) -> dict[str, tuple[str, Any]]:
    """Every key, with the group that holds it and its type."""
    found: dict[str, tuple[str, Any]] = {}
    for name, group in _groups(config):
        hints = typing.get_type_hints(type(group))
        found.update({f.name: (name, hints[f.name]) for f in dataclasses.fields(group)})
    return found


def _convert(value: Any, hint: Any) -> Any:
    """The YAML value as the field's type; raises TypeError where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False and "no" in arguments else value
        if value not in arguments:
            raise TypeError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        try:
            return tuple(_convert(item, arguments[0]) for item in value)
        except TypeError as rule:
            raise TypeError(f"a list of {rule}") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float:
        # YAML 1.1 reads 1e-5, without a point, as text.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise TypeError("a number") from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise TypeError("a number")
    if type(value) is not hint:
        expected = {int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
        raise TypeError(expected.get(hint, hint.__name__))
    return value


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" Perhaps you meant {close[0]!r}." if close else ""


def from_mapping(values: Mapping[str, Any], where: str, base: TrainConfig | None = None) -> TrainConfig:
    """The settings with the given keys replaced.

    Raises:
        ValueError: an unknown key, a wrong type or a value outside its range; names the key and `where`.
    """
    config = base or TrainConfig()
    values = dict(values)
    if "objective" in values:
        name = values.pop("objective")
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise ValueError(f"{where}: objective must be one of {sorted(OBJECTIVES)}, got {name!r}.")
        config = dataclasses.replace(config, objective=OBJECTIVES[name]())
    known = _fields(config)
    changes: dict[str, dict[str, Any]] = {}
    for given, value in values.items():
        key = ALIASES.get(given, given)
        if key != given and key in values:
            raise ValueError(f"{where}: {given} and {key} are two names of one setting: give one of them.")
        if key not in known:
            raise ValueError(f"{where}: unknown key {given!r}.{_nearest(given, [*known, *ALIASES, 'objective'])}")
        group, hint = known[key]
        try:
            changes.setdefault(group, {})[key] = _convert(value, hint)
        except TypeError as rule:
            raise ValueError(f"{where}: {given} must be {rule}, got {value!r}.") from None
    try:
        parts = {g: dataclasses.replace(getattr(config, g), **fields) for g, fields in changes.items()}
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    return dataclasses.replace(config, **parts)


def from_yaml(path: Path) -> TrainConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: no such config file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is no valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    # YAML reads a key like 7 or no as a number or a truth value; none is a key of ours.
    return from_mapping({str(key): value for key, value in values.items()}, str(path))


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """The flat keys of a config, ready for YAML: `from_mapping` gives the same config back."""
    kind = type(config.objective)
    name = next((key for key, cls in OBJECTIVES.items() if cls is kind), kind.__name__)
    flat: dict[str, Any] = {"objective": name}
    for _, group in _groups(config):
        for f in dataclasses.fields(group):
            value = getattr(group, f.name)
            flat[f.name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return flat


def parse(arguments: Sequence[str], prog: str = "diffpref train") -> TrainConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it.

    A true-or-false flag may stand alone for true, as in the diffusers scripts: `--gradient_checkpointing`."""
    import tyro

    base, known, rest = TrainConfig(), _fields(TrainConfig()), list[str]()
    given = [
        part for argument in arguments for part in (argument.split("=", 1) if argument[:2] == "--" else [argument])
    ]
    objective: str | None = None
    for place, argument in enumerate(given):
        key = argument[2:].replace("-", "_") if argument.startswith("--") else ""
        key, following = ALIASES.get(key, key), given[place + 1] if place + 1 < len(given) else ""
        if place and given[place - 1] in ("--config", "--objective"):
            continue
        if key == "config":
            if not following:
                raise ValueError("--config needs a YAML file: --config configs/sdxl/dpo.yaml.")
            base = from_yaml(Path(following))
        elif key == "objective":
            objective = following
        else:
            rest.append(f"--{key}" if key else argument)
            if key in known and known[key][1] is bool:
                written = following.lower() in ("true", "false")
                rest.append(given.pop(place + 1).capitalize() if written else "True")
    if objective is not None and OBJECTIVES.get(objective) is not type(base.objective):
        base = from_mapping({"objective": objective}, "--objective", base)
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(TrainConfig)
    return tyro.cli(flat, args=rest, default=base, prog=prog, description="Fine-tune a diffusion model on preferences.")
