"""Stable Diffusion 3 and 3.5: a joint transformer on the straight path, conditioned on two CLIPs and perhaps T5."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Checkpoint, Encoder, Times, latents, unit_weight, weights_hash
from diffpref.backbones.adapters.lora import lora_metadata, lora_state
from diffpref.backbones.precision import as_weights
from diffpref.path import GaussianPath, rectified_flow
from diffpref.transition import FlowSDE
from diffpref.types import Cond

COMPONENT = "transformer"
# As diffusers' train_dreambooth_lora_sd3.py: the joint attention of both streams.
LORA_TARGETS = tuple(
    f"attn.{name}"
    for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
)
SIDE = 16
STEP = FlowSDE()
STEPS = 1000
"""The transformer's timestep at t = 1."""
CLEANEST, NOISIEST = 1 / STEPS, 1 - 1 / STEPS
"""Training stays between them. The network never saw levels below its table's first; at t = 1 nothing of the picture is
left, so its SNR is zero and its log has no value."""
LONGEST_PROMPT = 512

sample, decode = latents.sample, latents.decode
latent_shape = latents.latent_shape
loss_weight = unit_weight


def load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> SD3Transformer2DModel:
    """The transformer of the pipeline."""
    return SD3Transformer2DModel.from_pretrained(
        checkpoint.source, subfolder="transformer", dtype=dtype, **checkpoint.options()
    )


def _scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The scheduler's settings, not a scheduler: its table is descending, already shifted, and changed by sampling."""
    # diffusers annotates its loaders as if they could return a tuple; hence Any, here and below.
    config: Any = FlowMatchEulerDiscreteScheduler.load_config(
        checkpoint.source, subfolder="scheduler", revision=checkpoint.revision
    )
    name, steps = config["_class_name"], config.get("num_train_timesteps", STEPS)
    if not name.startswith("FlowMatch") or steps != STEPS:
        raise ValueError(
            f"{checkpoint.source}: its scheduler is a {name} of {steps} levels; SD3 needs a "
            f"FlowMatchEulerDiscreteScheduler of {STEPS}."
        )
    return dict(config)


def load_path(checkpoint: Checkpoint) -> GaussianPath:
    """The straight path; raises ValueError where the pipeline's scheduler is for another one."""
    _scheduler_config(checkpoint)
    return rectified_flow()


@dataclass(frozen=True)
class SD3:
    """The transformer as a Backbone; cond holds prompt_embeds "n s d" and pooled "n d"."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        # bfloat16 knows no 999.
        timestep = STEPS * t.float()
        x_t, text, pooled = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"], cond["pooled"]))
        return self.network(x_t, text, pooled, timestep, return_dict=False)[0]


def backbone(network: torch.nn.Module, path: GaussianPath) -> SD3:
    """The network as the loss engine calls it."""
    return SD3(network, path)


def resolve_times(checkpoint: Checkpoint, times: Times) -> Times:
    """The times with density and shift filled in: logit-normal, and the shift of the pipeline's scheduler.

    Raises:
        ValueError: a setting of EDM's, one out of range, or no shift where the scheduler has no fixed one.
    """
    if times.timestep_density not in ("auto", "uniform", "logit_normal") or times.p_mean is not None:
        raise ValueError("timestep_density log_normal and p_mean are EDM's: use logit_normal or uniform, logit_mean.")
    if times.logit_std <= 0:
        raise ValueError(f"logit_std must be above 0, got {times.logit_std}.")
    shift = times.timestep_shift
    if shift is None:
        config = _scheduler_config(checkpoint)
        if config.get("use_dynamic_shifting", False):
            raise ValueError(
                f"{checkpoint.source}: its scheduler shifts by resolution (use_dynamic_shifting), so there is no shift "
                "to take over: set timestep_shift, for instance to 3.0 as SD3."
            )
        shift = float(config.get("shift", 1.0))
    if shift <= 0:
        raise ValueError(f"timestep_shift must be above 0, got {shift}.")
    density = "logit_normal" if times.timestep_density == "auto" else times.timestep_density
    return dataclasses.replace(times, timestep_density=density, timestep_shift=shift)


def draw_t(path: GaussianPath, times: Times, generator: torch.Generator) -> Tensor:
    """One t in (0, 1): u logit-normal or uniform, then shift u / (1 + (shift - 1) u); the times of `resolve_times`.

    Source: Esser et al. 2024, eq. 19 and 23."""
    shift = times.timestep_shift
    assert shift is not None
    if times.timestep_density == "uniform":
        u = torch.rand((), generator=generator)
    else:
        u = torch.sigmoid(times.logit_mean + times.logit_std * torch.randn((), generator=generator))
    return (shift * u / (1 + (shift - 1) * u)).clamp(CLEANEST, NOISIEST)


def chain_times(path: GaussianPath, steps: int) -> Tensor:
    """The levels of an on-policy chain of `steps` noisy steps, even in t from noise alone down.

    The remaining step to the clean picture is left to the denoiser."""
    return torch.linspace(1, 0, steps + 2)[:-1]


def time_fraction(t: Tensor) -> Tensor:
    """t itself, the noise's share, for metrics by noise level."""
    return t


def _load_vae(checkpoint: Checkpoint) -> Any:
    vae = latents.load_vae(checkpoint)
    if vae.config["shift_factor"] is None:
        name = checkpoint.vae or f"{checkpoint.source}/vae"
        raise ValueError(
            f"{name}: config.json has no shift_factor, which SD3's pipeline adds: set it, if need be to 0."
        )
    return vae


class SD3Encoder:
    """The autoencoder and both CLIPs in float32, and T5 in bfloat16 if the pipeline has one.

    T5-XXL takes 9.5 GB so, half of float32; in float16 its feed-forward layers overflow."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.length = checkpoint.max_sequence_length
        if not 1 <= self.length <= LONGEST_PROMPT:
            raise ValueError(f"max_sequence_length must be in [1, {LONGEST_PROMPT}], got {self.length}.")
        self.device = device
        self.vae = _load_vae(checkpoint).to(device)
        index: Any = StableDiffusion3Pipeline.load_config(checkpoint.source, revision=checkpoint.revision)
        # from_pretrained wants to be told that a part is absent, though the pipeline's own index says so.
        absent = {"text_encoder_3": None, "tokenizer_3": None} if index.get("text_encoder_3", [None])[0] is None else {}
        self.pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
            checkpoint.source,
            transformer=None,
            vae=None,
            dtype={"default": torch.float32, "text_encoder_3": torch.bfloat16},
            **absent,
            **checkpoint.options(),
        ).to(device)
        if absent:
            # The width of the zeros in T5's place is all that the pipeline asks its transformer for.
            config: Any = SD3Transformer2DModel.load_config(
                checkpoint.source, subfolder="transformer", revision=checkpoint.revision
            )
            self.pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))
        parts = (self.vae, *(getattr(self.pipeline, f"text_encoder{place}") for place in ("", "_2", "_3")))
        self.identity = "-".join([*(weights_hash(part) for part in parts if part is not None), f"{self.length}"])

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the transformer sees them; see `latents.encode_pictures`."""
        return latents.encode_pictures(self.vae, pictures, generators)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """prompt_embeds "n s d", CLIP's tokens and then T5's or zeros, and pooled "n d"."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds, "pooled": pooled}


def load_encoder(checkpoint: Checkpoint, device: torch.device) -> SD3Encoder:
    """What turns pictures and prompts into tensors."""
    return SD3Encoder(checkpoint, device)


def empty_prompt(checkpoint: Checkpoint, encoder: Encoder) -> dict[str, Tensor]:
    """The unconditional prompt of the pipeline: "", encoded."""
    return encoder.encode_prompts([""])


def group_cond(prompts: Cond, resolution: int) -> dict[str, Tensor]:
    """The conditioning of a batch: the prompts alone."""
    return dict(prompts)


def load_decoder(checkpoint: Checkpoint, network: torch.nn.Module, device: torch.device) -> StableDiffusion3Pipeline:
    """The pipeline around a network, without text encoders: prompts come encoded."""
    vae = _load_vae(checkpoint).to(device)
    parts = {f"{kind}{place}": None for kind in ("text_encoder", "tokenizer") for place in ("", "_2", "_3")}
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        checkpoint.source, transformer=network, vae=vae, **parts, **checkpoint.options()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_lora(network: torch.nn.Module, folder: Path) -> None:
    """Write pytorch_lora_weights.safetensors as `StableDiffusion3Pipeline.load_lora_weights` reads it."""
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=dict(lora_state(network)),
        transformer_lora_adapter_metadata=lora_metadata(network),
    )
