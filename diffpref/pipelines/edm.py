"""EDM over a diffusers UNet: the preconditioned denoiser D(x; sigma), and its sampler as a diffusers pipeline.

diffusers has EDM's schedulers and the UNet, but no pipeline that joins them in pixel space. This file goes along with
every model as its pipeline.py, for stock diffusers: it imports torch, diffusers and PIL, and nothing of ours."""

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle

CODE = "pipeline.py"  # this file's name in a pipeline's folder


@dataclass(frozen=True)
class NoiseSchedule:
    """What a scheduler's configuration says about the noise: the data's standard deviation, and Karras' levels."""

    sigma_data: float
    sigma_min: float
    sigma_max: float
    rho: float

    def levels(self, count: int) -> list[float]:
        """`count` noise levels from sigma_max down to sigma_min (Karras et al. 2022, eq. 5, without its last, 0)."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / max(count - 1, 1) * (low - high)) ** self.rho for i in range(count)]


def noise_schedule(scheduler: Mapping[str, Any]) -> NoiseSchedule:
    """The noise of a scheduler's configuration; raises ValueError for another preconditioning or spacing than EDM's."""
    for name, expected in (("prediction_type", "epsilon"), ("sigma_schedule", "karras")):
        if scheduler.get(name, expected) != expected:
            raise ValueError(f"the scheduler's {name} must be {expected} for EDM, got {scheduler[name]}.")
    return NoiseSchedule(**{name: scheduler[name] for name in NoiseSchedule.__dataclass_fields__})


def picture_shape(unet: Mapping[str, Any], patch_size: int) -> tuple[int, int]:
    """Channels and side, in pixels, of the pictures of a UNet's configuration; raises ValueError where there are none.

    The network sees `patch_size` squared values of each channel at each of its places."""
    channels, rest = divmod(unet["in_channels"], patch_size**2)
    if rest or channels not in (1, 3) or unet["out_channels"] != unet["in_channels"]:
        raise ValueError(
            f"the UNet must have {patch_size**2} (grey) or {3 * patch_size**2} (RGB) channels in and out for "
            f"patch_size {patch_size}, got {unet['in_channels']} in and {unet['out_channels']} out."
        )
    if not isinstance(unet["sample_size"], int):
        raise ValueError(f"the UNet's sample_size must be one number, its side, got {unet['sample_size']}.")
    return channels, unet["sample_size"] * patch_size


def denoise(
    unet: torch.nn.Module,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    sigma_data: float,
) -> Tensor:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), Karras et al. 2022, eq. 7 and table 1.

    F runs in its weights' precision; the sum is float32 or better.

    Args:
        x: noised pictures "n c h w", x0 + sigma eps.
        sigma: the noise level of each picture, " n", above 0.
        labels: the class of each picture, " n"; None for a network without classes.
    """
    wide = sigma.to(torch.promote_types(x.dtype, torch.float32))
    s = wide.view(-1, 1, 1, 1)
    norm = s.square() + sigma_data**2
    conditions = {} if labels is None else {"class_labels": labels}
    scaled = (x / norm.sqrt()).to(next(unet.parameters()).dtype)
    inner = unet(scaled, wide.log() / 4, return_dict=False, **conditions)[0]
    return sigma_data**2 / norm * x + s * sigma_data / norm.sqrt() * inner


def guided_denoise(
    unet: torch.nn.Module,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    sigma_data: float,
    guidance_scale: float,
) -> Tensor:
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
    network then sees "n p*p*c h/p w/p". `classes` names the classes, for prompts.

    Where diffpref is installed, `EDMPipeline.from_pretrained(folder)` loads it; elsewhere, by the file that is saved
    beside it, `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: EDMEulerScheduler,
        patch_size: int = 1,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        config: Any = unet.config
        picture_shape(config, patch_size)
        noise_schedule(scheduler.config)
        count = (config["num_class_embeds"] or 1) - 1
        if classes is not None and len({name.casefold() for name in classes}) != count:
            raise ValueError(f"classes must be {count} different names, one for each class of the UNet, got {classes}.")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(patch_size=patch_size, classes=None if classes is None else list(classes))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, unet: UNet2DModel | None = None, **options: Any) -> "EDMPipeline":
        """The pipeline of a folder or a name on the hub, by this class: code that lies there is not run.

        Options are those of the UNet's `from_pretrained`, like dtype, revision and variant."""
        where = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
        config: Any = cls.load_config(str(source), **where)
        scheduler: Any = EDMEulerScheduler.from_pretrained(source, subfolder="scheduler", **where)
        if unet is None:
            unet = UNet2DModel.from_pretrained(source, subfolder="unet", **options).eval()
        return cls(unet, scheduler, config.get("patch_size", 1), config.get("classes"))

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the pipeline into the folder, and this file beside it, which the index names."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.save_index(Path(save_directory))

    def save_index(self, folder: Path) -> None:
        """Write all but the UNet: the index, the scheduler, and this file."""
        self.save_config(str(folder))
        self.scheduler.save_pretrained(folder / "scheduler")
        shutil.copyfile(inspect.getfile(type(self)), folder / CODE)
        index = folder / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = [Path(CODE).stem, type(self).__name__]
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

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
            output_type: "pil", "pt" for a tensor "n c h w" in [-1, 1], or "latent" for the network's own, in patches.

        Raises:
            ValueError: a class the network does not have, an unknown output_type, or another number of generators.
        """
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f"output_type must be pil, pt or latent, got {output_type!r}.")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be 1 or above, got {num_inference_steps}.")
        unet: Any = self.unet
        count = batch_size if class_labels is None else len(class_labels)
        labels = self._labels(count, class_labels)
        noise = noise_schedule(self.scheduler.config)
        # For those who ask it where the pipeline is.
        self.scheduler.set_timesteps(num_inference_steps)
        sigmas = [*noise.levels(num_inference_steps), 0.0]
        x = self._normal(count, generator) * sigmas[0]

        def slope(x: Tensor, level: float) -> Tensor:
            sigma = torch.full((count,), level, dtype=x.dtype, device=x.device)
            return (x - guided_denoise(unet, x, sigma, labels, noise.sigma_data, guidance_scale)) / level

        # diffusers' decorator hides the signature from type checkers.
        with self.progress_bar(total=num_inference_steps) as bar:  # type: ignore[call-arg]
            for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
                first = slope(x, here)
                moved = x + (there - here) * first
                if there > 0:
                    moved = x + (there - here) * (first + slope(moved, there)) / 2
                x = moved
                bar.update()
        pictures: Any = x
        if output_type != "latent":
            pictures = pixel_shuffle(x, self.config["patch_size"])
        if output_type == "pil":
            pictures = pil_pictures(pictures)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    def _labels(self, count: int, class_labels: Sequence[int] | None) -> Tensor | None:
        embeds = self.unet.config["num_class_embeds"]
        if embeds is None:
            if class_labels is not None:
                raise ValueError("class_labels were given, but this network has no classes.")
            return None
        given = [unclassed(self.unet)] * count if class_labels is None else list(class_labels)
        wrong = [label for label in given if not 0 <= label < embeds]
        if wrong:
            raise ValueError(f"class_labels must be from 0 to {embeds - 1}, which stands for no class; got {wrong[0]}.")
        return torch.tensor(given, device=self.device)

    def _normal(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        """Standard normal noise in float32 or better; a picture with its own generator has the same in any batch."""
        config: Any = self.unet.config
        shape = (config["in_channels"], config["sample_size"], config["sample_size"])
        if isinstance(generator, Sequence):
            if len(generator) != count:
                raise ValueError(f"give one generator, or one for each of the {count} pictures, not {len(generator)}.")
            x = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generator])
        else:
            x = torch.randn((count, *shape), generator=generator, device=generator.device if generator else None)
        return x.to(self.device, torch.promote_types(self.unet.dtype, torch.float32))


def pil_pictures(x: Tensor) -> list[Image.Image]:
    """Pictures in [-1, 1] as PIL; one channel is grey."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return [Image.fromarray(p[0].numpy() if len(p) == 1 else p.permute(1, 2, 0).numpy()) for p in pixels]
