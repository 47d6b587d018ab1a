"""EDM over a diffusers UNet: the preconditioned denoiser D(x; sigma), and its sampler as a diffusers pipeline.

diffusers has EDM's schedulers and the UNet, but no pipeline that joins them in pixel space."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle


def denoise(
    unet: torch.nn.Module,
    x: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, " n"],
    labels: Int[Tensor, " n"] | None,
    sigma_data: float,
) -> Float[Tensor, "n c h w"]:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), Karras et al. 2022, eq. 7 and table 1.

    Args:
        x: noised pictures, x0 + sigma eps.
        sigma: the noise level of each picture, above 0.
        labels: the class of each picture; None for a network without classes.
    """
    wide = sigma.to(torch.promote_types(x.dtype, torch.float32))
    s = wide.view(-1, 1, 1, 1)
    norm = s.square() + sigma_data**2
    conditions = {} if labels is None else {"class_labels": labels}
    inner = unet((x / norm.sqrt()).to(x.dtype), wide.log() / 4, return_dict=False, **conditions)[0]
    return sigma_data**2 / norm * x + s * sigma_data / norm.sqrt() * inner


def guided_denoise(
    unet: torch.nn.Module,
    x: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, " n"],
    labels: Int[Tensor, " n"] | None,
    sigma_data: float,
    guidance_scale: float,
) -> Float[Tensor, "n c h w"]:
    """D with classifier-free guidance against the last class, which stands for no class; 1 is no guidance."""
    if labels is None or guidance_scale == 1:
        return denoise(unet, x, sigma, labels, sigma_data)
    blank = torch.full_like(labels, unclassed(unet))
    both = denoise(unet, torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([labels, blank]), sigma_data)
    named, unnamed = both.chunk(2)
    return unnamed + guidance_scale * (named - unnamed)


def unclassed(unet: Any) -> int:
    """The label that stands for no class: the last row of the class embedding."""
    return unet.config.num_class_embeds - 1


class EDMPipeline(DiffusionPipeline):
    """Pixel-space EDM, unconditional or class-conditional: a `UNet2DModel` and an EDM scheduler's configuration.

    Sampling is EDM's deterministic second-order method (Karras et al. 2022, algorithm 1 with Heun's correction).
    `patch_size` p moves each p x p square of pixels into channels before the network, which makes it cheaper: the
    network then sees "n p*p*c h/p w/p"."""

    def __init__(self, unet: UNet2DModel, scheduler: EDMEulerScheduler, patch_size: int = 1) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(patch_size=patch_size)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int = 18,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Pictures of the given classes.

        Args:
            batch_size: how many pictures where no classes are given.
            class_labels: the class of each picture; None gives pictures without a class.
            num_inference_steps: levels of the Karras schedule; each costs two network calls, the last one.
            generator: one generator, or one for each picture.
            output_type: "pil", or "pt" for a tensor "n c h w" in [-1, 1].
        """
        unet: Any = self.unet
        count = batch_size if class_labels is None else len(class_labels)
        labels = None
        if unet.config.num_class_embeds is not None:
            given = [unclassed(unet)] * count if class_labels is None else list(class_labels)
            labels = torch.tensor(given, device=self.device)
        elif class_labels is not None:
            raise ValueError("class_labels were given, but this network has no classes.")
        config = self.scheduler.config  # type: ignore[attr-defined]
        shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        if isinstance(generator, Sequence):
            x = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generator])
        else:
            x = torch.randn((count, *shape), generator=generator, device=generator.device if generator else None)
        sigmas = levels(config, num_inference_steps)
        x = x.to(self.device, unet.dtype) * sigmas[0]

        def slope(x: Tensor, level: float) -> Tensor:
            sigma = torch.full((count,), level, device=x.device)
            return (x - guided_denoise(unet, x, sigma, labels, config.sigma_data, guidance_scale)) / level

        with self.progress_bar(total=num_inference_steps) as bar:
            for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
                first = slope(x, here)
                moved = x + (there - here) * first
                if there > 0:
                    moved = x + (there - here) * (first + slope(moved, there)) / 2
                x = moved
                bar.update()
        if output_type == "pt":
            pictures: Any = pixel_shuffle(x, self.config.patch_size)
        else:
            pictures = pil_pictures(pixel_shuffle(x, self.config.patch_size))
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)


def levels(config: Any, steps: int) -> list[float]:
    """Karras et al. 2022, eq. 5: `steps` noise levels from sigma_max down to sigma_min, then 0."""
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return [(high + i / max(steps - 1, 1) * (low - high)) ** config.rho for i in range(steps)] + [0.0]


def pil_pictures(x: Float[Tensor, "n c h w"]) -> list[Image.Image]:
    """Pictures in [-1, 1] as PIL; one channel is grey."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return [Image.fromarray(p[0].numpy() if len(p) == 1 else p.permute(1, 2, 0).numpy()) for p in pixels]
