"""Everything before the first step: settings checked, data read and encoded, the network and its reference built.

The cheapest checks come first, so that a mistake costs seconds, not the hour that encoding takes.
"""

import dataclasses
import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffpref import atomic
from diffpref.backbones import Checkpoint, Encoder, Family, weights_hash
from diffpref.backbones.lora import attach_lora, load_lora_state
from diffpref.backbones.reference import AdapterOff, frozen_copy
from diffpref.config import TrainConfig
from diffpref.data.cache import TensorStore, require_space
from diffpref.data.chains import EncodedChains
from diffpref.data.check import check_rows
from diffpref.data.encode import EncodedPreferences, Framing, encode_preferences
from diffpref.data.rows import Preferences
from diffpref.data.scoring import score
from diffpref.data.sources import as_pairs, read_preferences
from diffpref.path import GaussianPath
from diffpref.settings import to_mapping
from diffpref.training.checkpoint import find_checkpoint
from diffpref.training.comparison import check_comparison
from diffpref.training.environment import describe
from diffpref.training.optimizer import check_optimizer
from diffpref.training.trackers import check_trackers
from diffpref.types import Backbone, Cond

LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUTS = (
    "checkpoint-*",
    "samples",
    "inversions",
    "metrics.jsonl",
    "report.html",
    "README.md",
    "evaluation.json",
    "*.safetensors",
    "unet",
    "transformer",
)


def checkpoint_of(config: TrainConfig) -> Checkpoint:
    """The base model that the settings name."""
    model = config.model
    return Checkpoint(
        model.pretrained_model_name_or_path,
        model.revision,
        model.variant,
        model.pretrained_vae_model_name_or_path,
        model.max_sequence_length,
    )


def check_settings(config: TrainConfig) -> list[str]:
    """The trackers to use; raises ValueError for settings that cannot work, before anything is read."""
    check_optimizer(config.optimization)
    if not config.data.dataset_name:
        raise ValueError("dataset_name is empty: give a file, a folder or a data set on the hub.")
    if not 0 <= config.data.proportion_empty_prompts <= 1:
        raise ValueError(f"proportion_empty_prompts must be in [0, 1], got {config.data.proportion_empty_prompts}.")
    check_comparison(config.comparison)
    steps = candidates_of(config) == "chain_pairs"
    if steps != (config.comparison.probe == "transition"):
        name = type(config.objective).__name__
        raise ValueError(
            f"{name} learns from the steps of the model's own chains: set probe: transition."
            if steps
            else f"probe: transition is for D3PO's chains; {name} compares pictures: set probe: forward or inversion."
        )
    counts = {
        "rank": config.adapter.rank,
        "checkpointing_steps": config.run.checkpointing_steps,
        "checkpoints_total_limit": config.run.checkpoints_total_limit,
        "logging_steps": config.run.logging_steps,
        "validation_steps": config.validation.validation_steps,
        "validation_batch_size": config.validation.validation_batch_size,
        "num_inference_steps": config.validation.num_inference_steps,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or above, got {value}.")
    if not 0 <= config.adapter.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {config.adapter.ema_decay}.")
    if config.run.enable_xformers_memory_efficient_attention and not torch.cuda.is_available():
        raise ValueError("enable_xformers_memory_efficient_attention needs a CUDA GPU; leave it out on this machine.")
    if config.run.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU: use bf16 or no on this machine.")
    return check_trackers(config.run.report_to)


def candidates_of(config: TrainConfig) -> str:
    """What the objective's groups hold: pairs, lists, chain_pairs or real_fake; an objective of the user's, pairs."""
    return getattr(config.objective, "candidates", "pairs")


def check_family(config: TrainConfig, family: Family) -> None:
    """Raise ValueError for settings that this backbone cannot work with."""
    side = family.SIDE
    if config.data.resolution < side or config.data.resolution % side:
        raise ValueError(f"resolution must be a multiple of {side}, got {config.data.resolution}.")
    targets = config.adapter.lora_target_modules or family.LORA_TARGETS
    if config.adapter.adapter == "lora" and not targets:
        raise ValueError("this backbone is trained as a whole, without LoRA: set adapter: full.")
    if config.model.network_weights is not None:
        network_weights(config.model.network_weights, family)


def network_weights(folder: Path, family: Family) -> Path:
    """The weight file of the trained network in a run's output folder; ValueError where it is missing."""
    for place in (folder / family.COMPONENT, folder):
        if (file := place / "diffusion_pytorch_model.safetensors").is_file():
            return file
    raise ValueError(
        f"network_weights {folder} has no {family.COMPONENT}/diffusion_pytorch_model.safetensors: name the output "
        "folder of a run with adapter: full."
    )


def adapter_state(file: Path, family: Family) -> dict[str, Tensor]:
    """The tensors of a saved LoRA by peft's names; ValueError where the file cannot be read."""
    file = file / LORA_FILE if file.is_dir() else file
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as problem:
        raise ValueError(f"adapter_weights {file} cannot be read ({problem}): name a {LORA_FILE}.") from None
    prefix = f"{family.COMPONENT}."
    return {name.removeprefix(prefix): tensor for name, tensor in saved.items()}


def check_output(config: TrainConfig) -> Path | None:
    """The checkpoint to resume from, if any; touches nothing.

    Raises:
        ValueError: the output directory holds another run, is a file, or lacks the named checkpoint or disk space.
    """
    folder, run = config.run.output_dir, config.run
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: choose a folder.")
    require_space(folder, 2**26, "a run")
    if run.resume_from_checkpoint is not None:
        found = find_checkpoint(folder, run.resume_from_checkpoint)
        if found is None and (folder / "README.md").exists() and not run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a finished run without a checkpoint to continue from. Choose another --output_dir, "
                "or delete what it wrote with --overwrite_output_dir."
            )
        return found
    if (folder / "config.yaml").exists() and not run.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds another run. Continue it with --resume_from_checkpoint latest, choose another "
            "--output_dir, or delete what it wrote with --overwrite_output_dir."
        )
    return None


def claim_output(config: TrainConfig) -> None:
    """Make the output directory this run's: what another run wrote there goes, but not the cache."""
    folder = config.run.output_dir
    if (folder / "config.yaml").exists():
        for pattern in OUTPUTS:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def write_provenance(config: TrainConfig) -> None:
    """config.yaml and environment.json in the output directory."""
    import yaml

    folder = config.run.output_dir
    atomic.write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    atomic.write_json(folder / "environment.json", describe())


def read_rows(config: TrainConfig) -> Preferences:
    """The checked rows of the data set, in the form and with the scores that the objective needs."""
    data = config.data
    pairs = [column.partition("=") for column in data.columns]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError(f"columns must be written as prompt=my_caption, got {list(data.columns)}.")
    rows = read_preferences(
        data.dataset_name,
        split=data.dataset_split,
        columns={name: theirs for name, _, theirs in pairs} or None,
        on_bad_row=data.on_bad_row,
        max_rows=data.max_train_samples,
    )
    if candidates_of(config) == "pairs":
        rows = as_pairs(rows, lists=data.lists)
    rows = check_rows(rows, size_mismatch=data.size_mismatch, on_bad_row=data.on_bad_row)
    return score(rows, config.objective, given=data.given_scores)


@dataclass(frozen=True)
class Encoded:
    """What is left of the encoders once they are out of memory."""

    data: EncodedPreferences | EncodedChains
    validation: Cond
    empty: Cond


@runtime_checkable
class Source(Protocol):
    """Where a run's groups come from: read and checked when it is made, encoded when training asks."""

    def summary(self) -> str:
        """What was read, for people."""
        ...

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        """The groups as tensors in a store."""
        ...


@dataclass(frozen=True)
class Rows:
    """Preferences that somebody gave: the source of every method that learns from a fixed data set."""

    rows: Preferences

    def summary(self) -> str:
        return self.rows.summary()

    def encode(
        self, config: TrainConfig, family: Family, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Encoded:
        return encode(config, family, accelerator, self.rows, say)


def encode(
    config: TrainConfig, family: Family, accelerator: Accelerator, rows: Preferences, say: Callable[[str], None]
) -> Encoded:
    """Latents and prompts, from the cache or through the encoders, which are freed before this returns."""
    checkpoint, settings = checkpoint_of(config), config.data
    encoder: Encoder = family.load_encoder(checkpoint, accelerator.device)
    validation, empty = encode_fixed(config, family, encoder)
    store = TensorStore(settings.cache_dir or config.run.output_dir / "cache")
    framing = Framing(settings.resolution, settings.crop, settings.random_flip, config.run.seed)

    def report(done: int, total: int) -> None:
        if done == total or done % 200 < 8:
            say(f"encoded {done} of {total} pictures")

    data = encode_preferences(
        rows,
        encoder,
        store,
        framing,
        dtype=settings.cache_dtype,
        empty=empty,
        share=(accelerator.process_index, accelerator.num_processes),
        report=report,
    )
    accelerator.wait_for_everyone()
    store.refresh()
    del encoder
    free_memory()
    return Encoded(data, validation, empty)


def encode_fixed(config: TrainConfig, family: Family, encoder: Encoder) -> tuple[Cond, Cond]:
    """The validation prompts and the empty prompt."""
    empty = {name: value.cpu() for name, value in family.empty_prompt(checkpoint_of(config), encoder).items()}
    prompts = config.validation.validation_prompts
    validation = {name: value.cpu() for name, value in encoder.encode_prompts(prompts).items()} if prompts else {}
    return validation, empty


def free_memory() -> None:
    """Give back what deleted models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Models:
    """The trained network and both models over it. `prepared` is the network as accelerate wraps it."""

    network: torch.nn.Module
    prepared: torch.nn.Module
    policy: Backbone
    reference: Backbone
    path: GaussianPath
    base_hash: str


def load_base(config: TrainConfig, family: Family, dtype: torch.dtype) -> torch.nn.Module:
    """The network that training starts from, which is also the reference."""
    network = family.load_network(checkpoint_of(config), dtype)
    if config.model.network_weights is not None:
        network.load_state_dict(load_file(network_weights(config.model.network_weights, family)))
    return network


def build_models(config: TrainConfig, family: Family, accelerator: Accelerator) -> Models:
    """The network with its adapter or as a whole, and the reference beside it."""
    settings = config.adapter
    dtype = DTYPES[config.run.mixed_precision]
    lora = settings.adapter == "lora"
    # All weights are trained in float32: an update at a usual learning rate is below half a step of bfloat16.
    network = load_base(config, family, dtype if lora else torch.float32).to(accelerator.device)
    base_hash = weights_hash(network)
    path = family.load_path(checkpoint_of(config))
    copied = None if lora else frozen_copy(network, dtype)
    if lora:
        targets = settings.lora_target_modules or family.LORA_TARGETS
        attach_lora(network, settings.rank, targets, seed=config.run.seed)
        if settings.adapter_weights is not None:
            load_lora_state(network, adapter_state(settings.adapter_weights, family))
    if config.run.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.run.enable_xformers_memory_efficient_attention:
        for module in (network, copied):
            if module is not None:
                module.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    # Policy and reference must differ by what was learned alone.
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network.train()
    prepared = accelerator.prepare_model(network)
    policy = family.backbone(prepared, path)
    reference = AdapterOff(family.backbone(network, path), network) if copied is None else family.backbone(copied, path)
    return Models(network, prepared, policy, reference, path, base_hash)


def identity(
    config: TrainConfig, models: Models, data: EncodedPreferences | EncodedChains, processes: int
) -> dict[str, object]:
    """What must be the same for a checkpoint to be continued exactly."""
    flat, batch = to_mapping(config), config.optimization
    keys = ("objective", *(f.name for f in dataclasses.fields(config.objective)))
    keys += ("adapter", "rank", "lora_target_modules", "optimizer", "seed", "use_ema")
    keys += ("proportion_empty_prompts", "random_flip")
    keys += tuple(f.name for group in (config.comparison, config.times) for f in dataclasses.fields(group))
    effective = batch.train_batch_size * batch.gradient_accumulation_steps * processes
    return {
        **{key: flat[key] for key in keys if key in flat},
        "base_model": models.base_hash,
        "data": data.fingerprint,
        "effective_batch": effective,
    }
