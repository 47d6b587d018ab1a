"""Stable Diffusion 3 and 3.5: a joint transformer on the straight path, conditioned on two CLIPs and perhaps T5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers  # its pipelines are imported where they are used
import torch
from diffusers import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Encoder, latents
from diffpref.backbones.adapters.lora import unscaled
from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.flow import STEPS, FlowTimes, even_times, fixed_shift, flow_times, scheduler_config
from diffpref.backbones.identity import weights_hash
from diffpref.backbones.loading import load_network, read_config
from diffpref.backbones.precision import as_weights
from diffpref.backbones.shape import Shape
from diffpref.backbones.times import Times
from diffpref.path import GaussianPath, rectified_flow
from diffpref.transition import FlowSDE, StepRule
from diffpref.types import Cond

LONGEST_PROMPT = 512


@dataclass(frozen=True)
class SD3Network:
    """The transformer as a Backbone; cond holds prompt_embeds "n s d" and pooled "n d"."""

    network: torch.nn.Module
    path: GaussianPath

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        assert "prompt_embeds_mask" not in cond, "SD3 reads zeros as tokens: all prompts have one length"
        # bfloat16 knows no 999.
        timestep = STEPS * t.float()
        x_t, text, pooled = (as_weights(self.network, each) for each in (x_t, cond["prompt_embeds"], cond["pooled"]))
        return self.network(x_t, text, pooled, timestep, return_dict=False)[0]


class SD3Encoder:
    """The autoencoder and both CLIPs in float32, and T5 in bfloat16 if the pipeline has one.

    T5-XXL takes 9.5 GB so, half of float32; in float16 its feed-forward layers overflow."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.length = checkpoint.max_sequence_length
        if not 1 <= self.length <= LONGEST_PROMPT:
            raise ValueError(f"max_sequence_length must be in [1, {LONGEST_PROMPT}], got {self.length}.")
        self.device = device
        self.vae = _load_vae(checkpoint).to(device)
        index = read_config(diffusers.StableDiffusion3Pipeline, checkpoint)
        # from_pretrained wants to be told that a part is absent, though the pipeline's own index says so.
        absent = {"text_encoder_3": None, "tokenizer_3": None} if index.get("text_encoder_3", [None])[0] is None else {}
        self.pipeline: Any = diffusers.StableDiffusion3Pipeline.from_pretrained(
            checkpoint.source,
            transformer=None,
            vae=None,
            dtype={"default": torch.float32, "text_encoder_3": torch.bfloat16},
            **absent,
            **checkpoint.options(),
        ).to(device)
        if absent:
            # The width of the zeros in T5's place is all that the pipeline asks its transformer for.
            config = read_config(SD3Transformer2DModel, checkpoint, "transformer")
            self.pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))
        parts = (self.vae, *(getattr(self.pipeline, f"text_encoder{place}") for place in ("", "_2", "_3")))
        self.identity = "-".join([*(weights_hash(part) for part in parts if part is not None), f"{self.length}"])

    def encode_pictures(
        self, pictures: Float[Tensor, "n 3 h w"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "n c hl wl"]:
        """Latents as the transformer sees them; see `latents.encode_pictures`."""
        return latents.encode_pictures(self.vae, pictures, generators)

    def encode_posteriors(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents; see `latents.encode_posteriors`."""
        return latents.encode_posteriors(self.vae, pictures)

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


@dataclass(frozen=True)
class SD3:
    """SD3 and SD3.5, medium and large."""

    checkpoint: Checkpoint
    times: FlowTimes = FlowTimes()

    component: ClassVar[str] = "transformer"
    networks: ClassVar[tuple[str, ...]] = ("SD3Transformer2DModel",)
    # As diffusers' train_dreambooth_lora_sd3.py: the joint attention of both streams.
    lora_targets: ClassVar[tuple[str, ...]] = tuple(
        f"attn.{name}"
        for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
    )
    side: ClassVar[int] = 16
    step: ClassVar[StepRule] = FlowSDE()
    pipeline: ClassVar[str] = "diffusers:DiffusionPipeline"
    call: ClassVar[str] = "pipe({prompt})"

    @classmethod
    def open(cls, checkpoint: Checkpoint, times: Times, resolution: int) -> "SD3":
        """The family with logit-normal times and the shift of the pipeline's scheduler, where the user sets none.

        Raises:
            ValueError: a setting of EDM's, one out of range, or no shift where the scheduler has no fixed one.
        """
        shift = times.timestep_shift
        if shift is None:
            shift = fixed_shift(checkpoint, scheduler_config(checkpoint, cls.__name__))
        return cls(checkpoint, flow_times(times, shift))

    @cached_property
    def path(self) -> GaussianPath:
        """The straight path; raises ValueError where the pipeline's scheduler is for another one."""
        scheduler_config(self.checkpoint, type(self).__name__)
        return rectified_flow()

    def load_network(self, dtype: torch.dtype) -> SD3Transformer2DModel:
        """The transformer of the pipeline, or the weights that replace it."""
        return load_network(SD3Transformer2DModel, self.checkpoint, self.component, dtype)

    def backbone(self, network: torch.nn.Module) -> SD3Network:
        """The network as the loss engine calls it."""
        return SD3Network(network, self.path)

    def draw_t(self, generator: torch.Generator) -> Tensor:
        """One t in (0, 1)."""
        return self.times.draw(generator)

    def time_fraction(self, t: Tensor) -> Tensor:
        """t itself, the noise's share, for metrics by noise level."""
        return t

    def loss_weight(self, t: Tensor) -> Tensor:
        """1: the density of the times is the only weight."""
        return torch.ones(t.shape, device=t.device)

    def chain_times(self, steps: int) -> Tensor:
        """The levels of an on-policy chain; see `flow.even_times`."""
        return even_times(steps)

    def load_encoder(self, device: torch.device) -> SD3Encoder:
        """What turns pictures and prompts into tensors."""
        return SD3Encoder(self.checkpoint, device)

    def empty_prompt(self, encoder: Encoder) -> dict[str, Tensor]:
        """The unconditional prompt of the pipeline: "", encoded."""
        return encoder.encode_prompts([""])

    def group_cond(self, prompts: Cond, resolution: int) -> dict[str, Tensor]:
        """The prompts alone."""
        return dict(prompts)

    def load_decoder(self, network: torch.nn.Module, device: torch.device) -> latents.LatentDecoder:
        """The pipeline around a network, without text encoders: prompts come encoded."""
        vae = _load_vae(self.checkpoint).to(device)
        parts = {f"{kind}{place}": None for kind in ("text_encoder", "tokenizer") for place in ("", "_2", "_3")}
        pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
            self.checkpoint.source, transformer=network, vae=vae, **parts, **self.checkpoint.options()
        )
        return latents.LatentDecoder(pipeline, network, latents.POOLED)

    def save_index(self, folder: Path) -> None:
        """Nothing: the pipeline's other networks are large, and stay in the base model."""
        return

    def save_lora(self, network: torch.nn.Module, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors as `StableDiffusion3Pipeline.load_lora_weights` and ComfyUI read it.

        Both take peft's names of a transformer; ComfyUI knows no alpha with them, so the scale is in the matrices."""
        state, metadata = unscaled(network)
        diffusers.StableDiffusion3Pipeline.save_lora_weights(
            folder, transformer_lora_layers=dict(state), transformer_lora_adapter_metadata=metadata
        )

    @classmethod
    def meta_backbone(cls, network: torch.nn.Module) -> SD3Network:
        """The network on the straight path."""
        return SD3Network(network, rectified_flow())

    @classmethod
    def shape(cls, config: Mapping[str, Any], resolution: int, lengths: Sequence[int], tokens: int | None) -> Shape:
        """Latents of a side of an eighth of the picture's; CLIP's tokens and then T5's, or zeros in T5's place."""
        side = resolution // latents.SCALE
        text = (tokens or lengths[0] + lengths[-1], config["joint_attention_dim"])
        prompt = {"prompt_embeds": text, "pooled": (config["pooled_projection_dim"],)}
        return Shape((config["in_channels"], side, side), prompt)

    @classmethod
    def prompt_tokens(cls, lengths: Sequence[int], longest: int) -> int | None:
        """CLIP's tokens, and as many of T5's as the settings say."""
        return lengths[0] + longest


def _load_vae(checkpoint: Checkpoint) -> Any:
    vae = latents.load_vae(checkpoint)
    if vae.config["shift_factor"] is None:
        name = checkpoint.vae or f"{checkpoint.source}/vae"
        raise ValueError(
            f"{name}: config.json has no shift_factor, which SD3's pipeline adds: set it, if need be to 0."
        )
    return vae
