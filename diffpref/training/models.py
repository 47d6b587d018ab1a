"""The network that is trained and the reference beside it, from a checkpoint and the settings."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, ProjectConfiguration, parse_flag_from_env
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffpref.backbones import Checkpoint, Family, weights_hash
from diffpref.backbones.attention import Setting, require
from diffpref.backbones.attention.processors import install_attention
from diffpref.backbones.compiled import check_compiler, compile_blocks
from diffpref.backbones.lora import attach_lora, load_lora_state
from diffpref.backbones.reference import AdapterOff, frozen_copy
from diffpref.path import GaussianPath
from diffpref.training.config import TrainConfig
from diffpref.types import Backbone

LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def accelerator_of(config: TrainConfig, trackers: Sequence[str] = ()) -> Accelerator:
    """accelerate with the run's precision and trackers.

    Autocast is for weights that are kept in float32. Under LoRA the network has the run's precision already, as in a
    pipeline that draws; autocast would only make its normalizations, which compute in float32 either way, write
    float32 too: a fifth more memory and a third more launches."""
    run = config.run
    return Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=list(trackers) or None,  # type: ignore[arg-type]
        project_config=ProjectConfiguration(project_dir=str(run.output_dir), logging_dir=str(run.output_dir / "logs")),
        kwargs_handlers=[AutocastKwargs(enabled=config.adapter.adapter == "full")],
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


def load_base(config: TrainConfig, family: Family, dtype: torch.dtype) -> torch.nn.Module:
    """The network that training starts from, which is also the reference."""
    network = family.load_network(checkpoint_of(config), dtype)
    if config.model.network_weights is not None:
        network.load_state_dict(load_file(network_weights(config.model.network_weights, family)))
    return network


@dataclass(frozen=True)
class Models:
    """The trained network and both models over it. `prepared` is the network as accelerate wraps it.

    `lines` say, for the log, what it was built with."""

    network: torch.nn.Module
    prepared: torch.nn.Module
    policy: Backbone
    reference: Backbone
    path: GaussianPath
    base_hash: str
    lines: tuple[str, ...] = ()


def attention_setting(config: TrainConfig) -> Setting:
    """The attention backend that the settings ask for, by its own name or by that of the diffusers scripts."""
    run = config.run
    if not run.enable_xformers_memory_efficient_attention:
        return run.attention
    if run.attention not in ("auto", "xformers"):
        raise ValueError(
            f"attention: {run.attention} and enable_xformers_memory_efficient_attention ask for two backends: "
            "give one of them."
        )
    return "xformers"


def check_machine(config: TrainConfig) -> None:
    """Raise ValueError, with the reason, where the attention or the compiler that is asked for cannot run here."""
    cuda = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.device("cuda" if cuda else "cpu")
    require(attention_setting(config), device, DTYPES[config.run.mixed_precision])
    if config.run.compile_blocks:
        check_compiler(device)


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
    lines = [install_attention(network, attention_setting(config), dtype)]
    if copied is not None:
        install_attention(copied, attention_setting(config), dtype)
    if lora:
        targets = settings.lora_target_modules or family.LORA_TARGETS
        lines.append(attach_lora(network, settings.rank, targets, seed=config.run.seed, backend=settings.lora_backend))
        if settings.adapter_weights is not None:
            load_lora_state(network, adapter_state(settings.adapter_weights, family))
    if config.run.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.run.compile_blocks:
        lines.append(compile_blocks(network))
        if copied is not None:
            compile_blocks(copied)
    # Policy and reference must differ by what was learned alone.
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network.train()
    prepared = accelerator.prepare_model(network)
    if lora:
        # As a stock pipeline calls it: without accelerate's autocast, and its casts of what is predicted.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    policy = family.backbone(prepared, path)
    reference = AdapterOff(family.backbone(network, path), network) if copied is None else family.backbone(copied, path)
    return Models(network, prepared, policy, reference, path, base_hash, tuple(lines))


def free_memory() -> None:
    """Give back what deleted models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
