"""Generator `pipeline`: a diffusers pipeline with its own scheduler, LoRA and arguments."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from diffpref.backbones.single_file import pipeline_folder
from diffpref.label.generators.drawn import Drawn, drawn
from diffpref.label.shards import content_of
from diffpref.settings.typed import nearest

OURS = ("prompt", "generator", "output_type", "num_images_per_prompt", "return_dict")
"""Arguments of a pipeline's call that the engine sets."""


@dataclass(frozen=True)
class Pipeline:
    """A diffusers pipeline."""

    pretrained_model_name_or_path: str
    """A folder with a diffusers pipeline, the name of one on the hub, or a whole checkpoint in one safetensors file."""
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    pipeline: str = ""
    """A pipeline class of diffusers, where the checkpoint's own is not wanted."""
    scheduler: str = ""
    """A scheduler class of diffusers, made from the checkpoint's scheduler and `scheduler_options`."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    lora: str = ""
    """A LoRA file or folder that is loaded over the pipeline."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """More keyword arguments of `from_pretrained`."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the pipeline's call: num_inference_steps, guidance_scale, height, width, negative_prompt."""
    cpu_offload: bool = False
    """Keep on the GPU only the model that is at work."""

    def __post_init__(self) -> None:
        for argument in OURS:
            if argument in self.call:
                raise ValueError(f"call must not set {argument}: the engine does.")

    def settings(self) -> Mapping[str, Any]:
        # Where the files lie and what is moved to the GPU when decide no image; what is in the files does.
        elsewhere = ("pretrained_model_name_or_path", "lora", "cpu_offload")
        own = {key: value for key, value in asdict(self).items() if key not in elsewhere}
        return {**own, "function": ""}

    def contents(self, hashes: Callable[[Path], str]) -> Mapping[str, str]:
        base = _weights(self.pretrained_model_name_or_path, self.revision, hashes)
        lora = {"lora": _weights(self.lora, None, hashes)} if self.lora else {}
        return {"pretrained_model_name_or_path": base, **lora}

    def check(self, name: str) -> None:
        """Raise ValueError for classes and arguments that do not exist; reads the checkpoint's index alone."""
        if self.scheduler:
            _named("scheduler", self.scheduler, name)
        index = {} if self.pipeline else json.loads(self._index(name).read_text(encoding="utf-8"))
        pipeline = self.pipeline or str(index.get("_class_name"))
        known = inspect.signature(_named("pipeline", pipeline, name).__call__).parameters
        for argument in self.call:
            # The pipelines of diffusers that take **kwargs read nothing from them but two callbacks.
            if argument not in known:
                raise ValueError(
                    f"call of generator {name!r}: {pipeline} has no argument {argument!r}."
                    f"{nearest(argument, list(known))}"
                )

    def open(self, device: torch.device, name: str) -> "PipelineGenerator":
        cls = _named("pipeline", self.pipeline or "DiffusionPipeline", name)
        options = {"revision": self.revision, "variant": self.variant, "dtype": getattr(torch, self.dtype)}
        source = pipeline_folder(self.pretrained_model_name_or_path)
        try:
            pipeline = cls.from_pretrained(source, **options, **self.load)
        except (OSError, ValueError, TypeError) as problem:
            raise ValueError(f"generator {name!r}: {source} cannot be loaded as a pipeline: {problem}") from None
        if self.scheduler:
            scheduler = _named("scheduler", self.scheduler, name)
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **self.scheduler_options)
        if self.lora:
            pipeline.load_lora_weights(self.lora)
        pipeline.set_progress_bar_config(disable=True)
        if self.cpu_offload and device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        return PipelineGenerator(pipeline, self.call)

    def _index(self, name: str) -> Path:
        """The checkpoint's model_index.json."""
        folder = Path(pipeline_folder(self.pretrained_model_name_or_path)).expanduser()
        if not folder.exists():
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(str(folder), "model_index.json", revision=self.revision))
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"generator {name!r}: {folder} is no diffusers pipeline: it has no model_index.json.")
        return folder / "model_index.json"


class PipelineGenerator:
    """A diffusers pipeline in memory; every image's noise comes from a generator of its own on the CPU."""

    def __init__(self, pipeline: Any, call: Mapping[str, Any]) -> None:
        self.pipeline, self.call = pipeline, call

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]:
        """One image per prompt; float arrays are asked for, because PIL images hide what is not a number."""
        with torch.inference_mode():
            result = self.pipeline(
                list(prompts),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                **self.call,
            )
        images = result.images
        if len(images) != len(prompts):
            raise ValueError(
                f"{type(self.pipeline).__name__} returned {len(images)} images for {len(prompts)} prompts."
            )
        blocked = getattr(result, "nsfw_content_detected", None) or [False] * len(images)
        return [drawn(image, blocked=bool(bad)) for image, bad in zip(images, blocked, strict=True)]


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


def _named(what: str, cls: str, generator: str) -> Any:
    """A class of diffusers by its name.

    Args:
        what: pipeline or scheduler, for the message.
    """
    import diffusers

    if not hasattr(diffusers, cls):
        raise ValueError(f"generator {generator!r}: diffusers has no {what} {cls!r}; look up its class name.")
    return getattr(diffusers, cls)
