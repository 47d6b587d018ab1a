"""Generators: diffusers pipelines, or a user's function, that draw one picture a prompt, each from its own seed."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from diffpref.files.identity import file_hash
from diffpref.labelling.config import GeneratorSettings
from diffpref.labelling.shards import content_of
from diffpref.settings.dotted import load_callable
from diffpref.settings.typed import nearest


@dataclass(frozen=True)
class Drawn:
    """A picture, or why there is none."""

    image: Image.Image | None
    status: str = "ok"
    """ok, nan_image or safety_blocked."""
    message: str = ""


@runtime_checkable
class Generator(Protocol):
    """Draws one picture for each prompt; equal prompts and seeds in equal batches give equal pictures."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]: ...


def identity(settings: GeneratorSettings, hashes: Callable[[Path], str] = file_hash) -> Mapping[str, Any]:
    """What the pictures depend on: the settings, and the hash or commit of the weights.

    Args:
        hashes: the SHA-256 of a file; a caller may remember them.

    Raises:
        ValueError: the checkpoint or function cannot be found.
    """
    # Where the files lie and how many pictures are drawn at once decide no picture; what is in them does.
    kept = {k: v for k, v in asdict(settings).items() if k not in ("cpu_offload", "batch_size")}
    if settings.function:
        function = load_callable("generator", settings.function)
        source = inspect.getsourcefile(function)
        name = settings.function.rpartition(":")[2]
        return {**kept, "function": name, "source": hashes(Path(source)) if source else ""}
    for key in ("pretrained_model_name_or_path", "lora"):
        name = kept.pop(key)
        if name:
            revision = settings.revision if key != "lora" else None
            kept[key] = _weights(name, revision, hashes)
    return kept


def _weights(name: str, revision: str | None, hashes: Callable[[Path], str]) -> str:
    """The digest of a local folder or file, or the commit of a hub repository."""
    if Path(name).expanduser().exists():
        return content_of(name, hashes)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"generator checkpoint {name} does not exist: name a folder, or OWNER/NAME on the hub.")
    from huggingface_hub import hf_hub_download

    try:
        # The cache keeps each file under its commit, with and without a network.
        return Path(hf_hub_download(name, "model_index.json", revision=revision)).parent.name
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ValueError(
            f"generator checkpoint {name} cannot be found ({reason:.200}): name a local folder, or download it first "
            "where there is a network."
        ) from None


def load_generator(settings: GeneratorSettings, device: Any) -> Generator:
    """The generator in memory, on a torch device.

    Raises:
        ValueError: the checkpoint is no pipeline, or a class or function does not exist.
    """
    if settings.function:
        return UserGenerator(load_callable("generator", settings.function)(device), settings.name)
    return PipelineGenerator(_pipeline(settings, device), settings)


def check_generator(settings: GeneratorSettings) -> None:
    """Raise ValueError for classes and arguments that do not exist; reads the checkpoint's index, and no weights.

    The second generator's mistake must not wait until the first has drawn a million pictures."""
    if settings.function:
        load_callable("generator", settings.function)
        return
    if settings.scheduler:
        _named(settings, "scheduler", settings.scheduler)
    name = settings.pipeline or json.loads(_index(settings).read_text(encoding="utf-8")).get("_class_name")
    kind = _named(settings, "pipeline", str(name))
    known = inspect.signature(kind.__call__).parameters
    for argument in settings.call:
        # The pipelines of diffusers that take **kwargs read nothing from them but two callbacks.
        if argument not in known:
            raise ValueError(
                f"call of generator {settings.name!r}: {name} has no argument {argument!r}."
                f"{nearest(argument, list(known))}"
            )


def _index(settings: GeneratorSettings) -> Path:
    """The checkpoint's model_index.json."""
    folder = Path(settings.pretrained_model_name_or_path).expanduser()
    if not folder.exists():
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(str(folder), "model_index.json", revision=settings.revision))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"generator {settings.name!r}: {folder} is no diffusers pipeline: it has no model_index.json.")
    return folder / "model_index.json"


def _named(settings: GeneratorSettings, kind: str, name: str) -> Any:
    """The class of diffusers with that name."""
    import diffusers

    if not hasattr(diffusers, name):
        raise ValueError(f"generator {settings.name!r}: diffusers has no {kind} {name!r}; look up its class name.")
    return getattr(diffusers, name)


def _pipeline(settings: GeneratorSettings, device: Any) -> Any:
    import torch

    kind = _named(settings, "pipeline", settings.pipeline or "DiffusionPipeline")
    options = {"revision": settings.revision, "variant": settings.variant, "dtype": getattr(torch, settings.dtype)}
    source = settings.pretrained_model_name_or_path
    try:
        pipeline = kind.from_pretrained(source, **options, **settings.load)
    except (OSError, ValueError, TypeError) as problem:
        raise ValueError(f"generator {settings.name!r}: {source} cannot be loaded as a pipeline: {problem}") from None
    if settings.scheduler:
        scheduler = _named(settings, "scheduler", settings.scheduler)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings.scheduler_options)
    if settings.lora:
        pipeline.load_lora_weights(settings.lora)
    pipeline.set_progress_bar_config(disable=True)
    if settings.cpu_offload and torch.device(device).type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return pipeline


class PipelineGenerator:
    """A diffusers pipeline; every picture's noise comes from a generator of its own on the CPU."""

    def __init__(self, pipeline: Any, settings: GeneratorSettings) -> None:
        self.pipeline, self.settings = pipeline, settings

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]:
        """One picture a prompt; float arrays are asked for, because PIL pictures hide what is not a number."""
        import torch

        with torch.inference_mode():
            result = self.pipeline(
                list(prompts),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                **self.settings.call,
            )
        images = result.images
        if len(images) != len(prompts):
            raise ValueError(
                f"{type(self.pipeline).__name__} returned {len(images)} pictures for {len(prompts)} prompts."
            )
        blocked = getattr(result, "nsfw_content_detected", None) or [False] * len(images)
        return [_drawn(image, bool(bad)) for image, bad in zip(images, blocked, strict=True)]


def _drawn(image: Any, blocked: bool) -> Drawn:
    if blocked:
        return Drawn(None, "safety_blocked", "the pipeline's safety checker blocked the picture")
    if isinstance(image, Image.Image):
        return Drawn(image.convert("RGB"))
    array = np.asarray(image)
    if not np.isfinite(array).all():
        return Drawn(None, "nan_image", "the picture has values that are not finite numbers")
    # The rule by which diffusers makes PIL pictures, so that a stock pipeline draws the same bytes.
    pixels = (np.clip(array, 0, 1) * 255).round().astype("uint8")
    return Drawn(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB"))


class UserGenerator:
    """A user's function of (prompts, seeds), whose every answer is checked."""

    def __init__(self, function: Callable[[list[str], list[int]], Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]:
        """One picture a prompt.

        Raises:
            ValueError: another number of answers, or an answer that is no picture.
        """
        answers = list(self.function(list(prompts), list(seeds)))
        if len(answers) != len(prompts):
            raise ValueError(f"generator {self.name!r} returned {len(answers)} pictures for {len(prompts)} prompts.")
        for answer in answers:
            if not isinstance(answer, Image.Image | np.ndarray):
                raise ValueError(f"generator {self.name!r} returned {type(answer).__name__}: it must return pictures.")
        return [_drawn(answer, False) for answer in answers]
