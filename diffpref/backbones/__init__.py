"""Backbones: diffusers pipelines seen as a network on a path. One family of pipelines is one module.

A family module has the names of `Family`; `find_family` picks it by the class that the pipeline's folder names.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath
from diffpref.transition import StepRule
from diffpref.types import Backbone, Cond

FAMILIES = {
    "StableDiffusionXLPipeline": "diffpref.backbones.sdxl",
    "StableDiffusionPipeline": "diffpref.backbones.sd15",
    "StableDiffusion3Pipeline": "diffpref.backbones.sd3",
    "EDMPipeline": "diffpref.backbones.edm",
}


@dataclass(frozen=True)
class Checkpoint:
    """Where a base model's weights come from."""

    source: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    max_sequence_length: int = 256
    """Tokens of SD3's T5 prompt, or of the zeros in its place."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments for diffusers' `from_pretrained`."""
        return {"revision": self.revision, "variant": self.variant}


@dataclass(frozen=True)
class Times:
    """How t is drawn in training. None is the backbone's own value, from its checkpoint or its paper."""

    timestep_density: Literal["auto", "uniform", "logit_normal", "log_normal"] = "auto"
    """Density of t: uniform (SDXL), logit_normal (SD3), log_normal in sigma (EDM); auto is the backbone's own."""
    logit_mean: float = 0.0
    """Mean of logit_normal; SD3 uses 0 (Esser et al. 2024)."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal."""
    timestep_shift: float | None = None
    """Flow models: t becomes shift t / (1 + (shift - 1) t); by default the scheduler's shift."""
    p_mean: float | None = None
    """EDM: mean of ln sigma; by default -1.2 + ln(sigma_data / 0.5)."""
    p_std: float = 1.2
    """EDM: standard deviation of ln sigma."""


@runtime_checkable
class Encoder(Protocol):
    """Pictures and prompts to what the network sees; held in memory only while the cache is filled."""

    identity: str
    """Names the weights and their precision: equal identities encode equally."""

    def encode_pictures(self, pictures: Tensor, generators: Sequence[torch.Generator]) -> Tensor: ...

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]: ...


@runtime_checkable
class Family(Protocol):
    """What a backbone module provides."""

    COMPONENT: str
    """The pipeline's folder of the network that is trained."""
    LORA_TARGETS: Sequence[str]
    """Layers that get LoRA by default; empty where the backbone is trained as a whole only."""
    SIDE: int
    """Pictures' sides are multiples of this, in pixels."""
    STEP: StepRule
    """The stochastic sampler of on-policy chains."""

    def load_network(self, checkpoint: Checkpoint, dtype: torch.dtype) -> torch.nn.Module: ...

    def load_path(self, checkpoint: Checkpoint) -> GaussianPath: ...

    def backbone(self, network: torch.nn.Module, path: GaussianPath) -> Backbone: ...

    def resolve_times(self, checkpoint: Checkpoint, times: Times) -> Times: ...

    def draw_t(self, path: GaussianPath, times: Times, generator: torch.Generator) -> Tensor: ...

    def time_fraction(self, t: Tensor) -> Tensor: ...

    def load_encoder(self, checkpoint: Checkpoint, device: torch.device) -> Encoder: ...

    def empty_prompt(self, checkpoint: Checkpoint, encoder: Encoder) -> dict[str, Tensor]: ...

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]: ...

    def load_decoder(self, checkpoint: Checkpoint, network: torch.nn.Module, device: torch.device) -> Any: ...

    def sample(self, decoder: Any, prompts: Cond, empty: Cond, **options: Any) -> list[Any]: ...

    def decode(self, decoder: Any, latents: Tensor) -> list[Any]: ...

    def latent_shape(self, decoder: Any, resolution: int) -> tuple[int, ...]: ...

    def chain_times(self, path: GaussianPath, steps: int) -> Tensor: ...

    def loss_weight(self, path: GaussianPath, t: Tensor) -> Tensor: ...

    def save_lora(self, network: torch.nn.Module, folder: Path) -> None: ...


def unit_weight(path: GaussianPath, t: Float[Tensor, " b"] | Tensor) -> Float[Tensor, " b"]:
    """The weight of squared errors at t where a backbone is trained without one."""
    return torch.ones(t.shape, device=t.device)


def find_family(checkpoint: Checkpoint) -> Family:
    """The family of a pipeline folder or hub name.

    Raises:
        ValueError: nothing there, no pipeline, or a pipeline of an unsupported class; names which and what to do.
    """
    name = _pipeline_class(checkpoint)
    if name not in FAMILIES:
        raise ValueError(f"{checkpoint.source} is a {name}; supported pipelines are {', '.join(FAMILIES)}.")
    # A module with these names; a type checker cannot compare a module loaded by name with the protocol.
    return importlib.import_module(FAMILIES[name])  # type: ignore[return-value]


def _pipeline_class(checkpoint: Checkpoint) -> str:
    source = checkpoint.source
    if not source:
        raise ValueError("pretrained_model_name_or_path is empty: give a pipeline folder or a name on the hub.")
    if Path(source).is_dir():
        index = Path(source) / "model_index.json"
        if not index.is_file():
            raise ValueError(f"{source} is no diffusers pipeline: it has no model_index.json. Give its parent folder?")
        return json.loads(index.read_text())["_class_name"]
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"{source}: no such folder, and no name on the hub (OWNER/NAME). Check the path.")
    from diffusers import DiffusionPipeline

    try:
        config = DiffusionPipeline.load_config(source, revision=checkpoint.revision)
    except (OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"{source}: no such folder, and no such pipeline could be read from the hub. Check "
            f"pretrained_model_name_or_path, the network, and `hf auth login` for gated models. ({reason})"
        ) from None
    return dict(config)["_class_name"]  # type: ignore[call-overload]


def weights_hash(module: torch.nn.Module) -> str:
    """A short name for a module's weights: equal for equal values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        # A thousand values of each tensor, evenly spread, tell any two trained models apart and cost no second.
        picked = flat[:: max(1, flat.numel() // 1000)].contiguous()
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
