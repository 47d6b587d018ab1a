"""What a reward's run needs before its first step: the model, its optimizer, and the run's identity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import nn

from diffpref.backbones.adapters.trained import trainable
from diffpref.files.identity import files_hash
from diffpref.rewards.clip_hf import Processor, load_model, load_processor
from diffpref.rewards.training.config import Base, Run, Towers
from diffpref.rewards.training.model import PairScorer, choose_trained
from diffpref.rewards.training.tunings import Tuning
from diffpref.run.launcher import check_launcher
from diffpref.settings.record import fields_of
from diffpref.training.groups import Optimization
from diffpref.training.optimizers import Optimizer
from diffpref.training.schedule import build_schedule, effective_rate

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True, kw_only=True)
class Model:
    """The CLIP that is trained, on the device."""

    network: PairScorer
    prepared: nn.Module
    """The network as accelerate calls it: under autocast, and in several processes wrapped."""
    processor: Processor
    base_hash: str

    @property
    def clip(self) -> "CLIPModel":
        """The CLIP alone."""
        return self.network.clip

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return trainable(self.network)


def check_named(**names: str) -> None:
    """Raise ValueError for a setting that names nothing."""
    for key, name in names.items():
        if not name:
            raise ValueError(f"{key} is empty: name a folder, a file or something on the hub.")


def accelerator_of(run: Run, trackers: list[str]) -> Accelerator:
    """What knows the processes, the device, the precision and the trackers."""
    check_launcher(run.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=trackers or None,  # type: ignore[arg-type]
        project_config=ProjectConfiguration(project_dir=str(run.output_dir), logging_dir=str(run.output_dir / "logs")),
    )
    if run.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def build_model(base: Base, tuning: Tuning, towers: Towers, *, seed: int, accelerator: Accelerator) -> Model:
    """The base model with what learns of it marked.

    Raises:
        ValueError: no such model or processor, or layers that it does not have.
    """
    source = base.pretrained_model_name_or_path
    clip, files = load_model(source)
    processor = load_processor(base.processor or source, clip.config)
    choose_trained(clip, tuning, towers, seed=seed)
    network = PairScorer(clip)
    return Model(
        network=network,
        prepared=accelerator.prepare_model(network),
        processor=processor,
        base_hash=files_hash(files),
    )


def build_parts(
    network: PairScorer,
    optimizer: Optimizer,
    optimization: Optimization,
    *,
    decay_vectors: bool,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Optimizer, schedule, the gradient scaler of fp16, and the one trained tensor that an adapter does not hold.

    Args:
        decay_vectors: whether weight decay reaches biases, norms and logit_scale, too.

    Raises:
        ValueError: nothing is trained.
    """
    trained = trainable(network)
    if not trained:
        raise ValueError("nothing is trained: raise trained_vision_layers or trained_text_layers, or use adapter lora.")
    decayed = [p for p in trained if p.ndim > 1 or decay_vectors]
    others = [p for p in trained if p.ndim <= 1 and not decay_vectors]
    rate = effective_rate(optimization, accelerator.num_processes)
    groups = [{"params": decayed}] * bool(decayed) + [{"params": others, "weight_decay": 0.0}] * bool(others)
    prepared = accelerator.prepare_optimizer(optimizer.build(groups, rate))
    parts = {"optimizer": prepared, "schedule": build_schedule(prepared, optimization)}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    parts["logit_scale"] = nn.ParameterList([network.clip.logit_scale])
    return parts


def identity(
    settings: Mapping[str, Any], tuning: Tuning, *, base_hash: str, data: str, effective_batch: int
) -> dict[str, object]:
    """What must be the same for a checkpoint to be continued exactly.

    Args:
        settings: all of the run's, flat.
        data: the fingerprint of the pairs.
        effective_batch: pairs of a step, of all processes."""
    kept = ("loss", "adapter", *fields_of(tuning), *fields_of(Towers()), "optimizer", "seed")
    fixed = {"base_model": base_hash, "data": data, "effective_batch": effective_batch}
    return {**{key: settings[key] for key in kept}, **fixed}
