"""The network that is trained and the reference beside it, from a checkpoint and the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, ProjectConfiguration, parse_flag_from_env

from diffpref.backbones import Checkpoint, Family, Times, open_backbone
from diffpref.backbones.adapters import Adapter
from diffpref.backbones.attention import Setting, require
from diffpref.backbones.compiled import check_compiler, compile_blocks
from diffpref.backbones.identity import some_values, weights_hash
from diffpref.run.precision import PRECISIONS
from diffpref.training.groups import Model, Run
from diffpref.types import Backbone


def accelerator_of(run: Run, adapter: Adapter, trackers: Sequence[str] = ()) -> Accelerator:
    """accelerate with the run's precision and trackers, and autocast where the adapter wants it."""
    return Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(run.output_dir), logging_dir=str(run.output_dir / "logs")),
        kwargs_handlers=[AutocastKwargs(enabled=adapter.autocast)],
    )


def open_base(model: Model, times: Times, *, resolution: int) -> Family:
    """The backbone that the settings name; ValueError for settings that it cannot work with."""
    checkpoint = Checkpoint(
        model.pretrained_model_name_or_path,
        model.revision,
        model.variant,
        model.pretrained_vae_model_name_or_path,
        model.max_sequence_length,
        model.network_weights,
        model.base_adapters,
        model.single_file_config,
    )
    return open_backbone(checkpoint, times, resolution=resolution)


@dataclass(frozen=True)
class Models:
    """The trained network and both models over it. `prepared` is the network as accelerate wraps it.

    `lines` say, for the log, what it was built with."""

    network: torch.nn.Module
    prepared: torch.nn.Module
    policy: Backbone
    reference: Backbone
    base_hash: str
    base_values: Mapping[str, Any]
    """Some weights of the network before it was trained, for whoever loads the result."""
    lines: tuple[str, ...] = ()


def attention_setting(run: Run) -> Setting:
    """The attention backend that the settings ask for, by its own name or by that of the diffusers scripts."""
    if not run.enable_xformers_memory_efficient_attention:
        return run.attention
    if run.attention not in ("auto", "xformers"):
        raise ValueError(
            f"attention: {run.attention} and enable_xformers_memory_efficient_attention ask for two backends: "
            "give one of them."
        )
    return "xformers"


def check_machine(run: Run) -> None:
    """Raise ValueError, with the reason, where the attention or the compiler that is asked for cannot run here."""
    cuda = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.device("cuda" if cuda else "cpu")
    require(attention_setting(run), device, PRECISIONS[run.mixed_precision])
    if run.compile_blocks:
        check_compiler(device)


@dataclass(frozen=True)
class Computing:
    """How the networks of a run are computed, whatever they are."""

    precision: torch.dtype = torch.float32
    attention: Setting = "auto"
    checkpointing: bool = False
    compiled: bool = False


def computing_of(run: Run) -> Computing:
    """How the settings ask for networks to be computed."""
    return Computing(
        PRECISIONS[run.mixed_precision], attention_setting(run), run.gradient_checkpointing, run.compile_blocks
    )


def build_models(
    family: Family,
    adapter: Adapter,
    accelerator: Accelerator,
    *,
    computing: Computing,
    seed: int,
) -> Models:
    """The network with its adapter or as a whole, and the reference beside it.

    Args:
        seed: of an adapter's first weights."""
    # Settings are checked without diffusers, whose import takes seconds.
    from diffpref.backbones.attention.processors import install_attention

    dtype, attention = computing.precision, computing.attention
    network = family.load_network(adapter.base_dtype(dtype)).to(accelerator.device)
    base_hash, base_values = weights_hash(network), some_values(network)
    copied = adapter.copy(network, dtype)
    lines = [install_attention(network, attention, dtype)]
    if copied is not None:
        install_attention(copied, attention, dtype)
    lines += adapter.attach(network, family, seed=seed)
    if computing.checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    if computing.compiled:
        lines.append(compile_blocks(network))
        if copied is not None:
            compile_blocks(copied)
    for each in (network, copied):
        if each is not None:
            _without_dropout(each)
            # Both alike: in training mode diffusers' blocks lay tensors out otherwise, and convolutions round by that.
            each.train()
    prepared = accelerator.prepare_model(network)
    if not adapter.autocast:
        # As a stock pipeline calls it: without accelerate's autocast, and its casts of what is predicted.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    policy, plain = family.backbone(prepared), family.backbone(network)
    reference = adapter.reference(plain, network) if copied is None else family.backbone(copied)
    return Models(network, prepared, policy, reference, base_hash, base_values, tuple(lines))


def _without_dropout(network: torch.nn.Module) -> None:
    """Set dropout to 0: policy and reference must differ by what was learned alone."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
