"""More or less of a preference while a stock pipeline draws: reference + scale (policy - reference)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffpref.pipelines.loaded import LOADED, component_of, tuner_layers, without_adapters


@contextmanager
def preference_guidance(pipe: Any, scale: float, start: float = 0.0, stop: float = 1.0) -> Iterator[Any]:
    """Inside, the pipeline's network predicts reference + scale (policy - reference).

    The policy is the network as it is in the pipeline, the reference the same without its preference: without the LoRA
    that `load` put in (without any LoRA where another put them in), or the network whose place `load` has given to a
    whole one. Scale 0 draws the base's images and scale 1 the tuned model's, to the last bit; each costs one call of
    the network a step, any other scale two. The network's forward is wrapped, so that img2img, inpainting and
    ControlNet work as they do without it. Blocks may stand inside each other.

    >>> with preference_guidance(pipe, 2.0, stop=0.5):  # doctest: +SKIP
    ...     image = pipe("a fox in the snow").images[0]

    Args:
        pipe: any diffusers pipeline with a unet or a transformer.
        scale: any number; above 1 goes beyond the tuned model.
        start, stop: the part of the scheduler's levels in which the scale holds, 0 the noisiest and 1 the end; before
            and after it the pipeline draws as it would without this block. Image to image begins late: at a strength
            of 0.3, at 0.7.

    Raises:
        ValueError: neither a LoRA nor a network of `load` is in the pipeline, or a start that is not before stop.
    """
    if not 0 <= start < stop <= 1:
        raise ValueError(f"start and stop must be in [0, 1], start before stop, got {start} and {stop}.")
    network = getattr(pipe, component_of(pipe))
    reference = _reference(network)
    own, inner = network.__dict__.get("forward"), network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if scale == 1 or not _inside(pipe, args, kwargs, start, stop):
            return inner(*args, **kwargs)
        with reference() as base:
            plain = (inner if base is None else base)(*args, **kwargs)
        return plain if scale == 0 else _mixed(plain, inner(*args, **kwargs), scale)

    base = LOADED[network].base if network in LOADED else None
    home = None if base is None else next(base.parameters()).device
    if base is not None:
        base.to(next(network.parameters()).device)
    network.forward = forward
    try:
        yield pipe
    finally:
        if own is None:
            del network.forward
        else:
            network.forward = own
        if base is not None:
            base.to(home)


def _reference(network: torch.nn.Module) -> Any:
    """A context whose value is the base network, or None where the network itself is the base inside."""
    loaded = LOADED.get(network)
    if loaded is not None and loaded.base is not None:
        base = loaded.base

        @contextmanager
        def other() -> Iterator[Any]:
            yield base

        return other
    layers = tuner_layers(network)
    if not layers:
        raise ValueError(
            "this pipeline has no preference in it: call diffpref.pipelines.load(pipe, RUN), or load_lora_weights, "
            "before preference_guidance."
        )
    merged = [name for layer in layers for name in layer.merged_adapters]
    if merged:
        raise ValueError(f"LoRA {merged[0]!r} is fused into the network: call pipe.unfuse_lora() first.")
    names: set[str] = {name for layer in layers for name in layer.active_adapters}
    if loaded is not None:
        names &= {loaded.adapter}

    @contextmanager
    def off() -> Iterator[None]:
        with without_adapters(layers, sorted(names)):
            yield None

    return off


def _inside(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any], start: float, stop: float) -> bool:
    """Whether a call of the network is at one of the scheduler's levels from start to stop."""
    if start == 0 and stop == 1:
        return True
    levels = pipe.scheduler.timesteps.flatten().float()
    time = kwargs["timestep"] if "timestep" in kwargs else args[1]
    time = torch.as_tensor(time, dtype=levels.dtype, device=levels.device).flatten()[0]
    return start <= int((levels - time).abs().argmin()) / len(levels) < stop


def _mixed(reference: Any, policy: Any, scale: float) -> Any:
    """reference + scale (policy - reference), in the form in which both are."""
    if isinstance(policy, tuple):
        return (reference[0] + scale * (policy[0] - reference[0]), *policy[1:])
    return type(policy)(sample=reference.sample + scale * (policy.sample - reference.sample))
