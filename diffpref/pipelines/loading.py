"""One line that puts a finished run into a stock diffusers pipeline: a LoRA or a whole network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpref.pipelines.base_check import check_base
from diffpref.pipelines.loaded import LOADED, Loaded, component_of, tuner_layers
from diffpref.pipelines.results import Result, find_result

LORA_NAME = "preference"


def load(pipe: Any, run_or_hub: Path | str, scale: float = 1.0, *, same_base: bool = True) -> Any:
    """The pipeline with what a run has learned in its network; changed in place, and returned.

    A LoRA becomes one more adapter, which diffusers' own methods know (`set_adapters`, `disable_lora`, `fuse_lora`). A
    whole network takes the place of the pipeline's, which goes to the machine's memory for `preference_guidance`.

    >>> pipe = load(DiffusionPipeline.from_pretrained(base), "runs/mine")  # doctest: +SKIP

    Args:
        pipe: a diffusers pipeline of the base model.
        run_or_hub: the output directory of a finished run, also of one in rounds; a folder or a file with a LoRA, a
            folder with a network; or the name of one of these on the hub.
        scale: the LoRA's weight; of a whole network, base + scale (tuned - base) in each weight.
        same_base: whether the pipeline must have the weights that the run was trained over.

    Raises:
        ValueError: nothing finished there, another base model, or weights of another family; the pipeline is unchanged.
    """
    component = component_of(pipe)
    if hasattr(getattr(pipe, component), "_hf_hook"):
        raise ValueError("the pipeline is offloaded already: call load before enable_model_cpu_offload.")
    result = find_result(run_or_hub, component)
    if same_base:
        check_base(pipe, component, result)
    if result.lora is not None:
        _load_lora(pipe, component, result, scale)
    else:
        _load_network(pipe, component, result, scale)
    return pipe


def _load_lora(pipe: Any, component: str, result: Result, scale: float) -> None:
    file, network = result.lora, getattr(pipe, component)
    assert file is not None
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{file} is a LoRA, and {type(pipe).__name__} has no loader for one.")
    _check_layers(file, _read_lora(pipe, file), component, network)
    others = list(network.active_adapters()) if tuner_layers(network) else []
    weights = [_weight(network, name) for name in others]
    taken = set(getattr(network, "peft_config", {}))
    name = next(n for n in (LORA_NAME, *(f"{LORA_NAME}_{i}" for i in range(2, 100))) if n not in taken)
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters([*others, name], [*weights, scale])
    LOADED[network] = Loaded(result.run, name, None)


def _weight(network: torch.nn.Module, name: str) -> float:
    """The weight that an adapter has now: its scale over alpha / rank."""
    layer = next(layer for layer in tuner_layers(network) if name in layer.scaling)
    return layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]


def _read_lora(pipe: Any, file: Path) -> Mapping[str, Tensor]:
    """The tensors by diffusers' names, as the pipeline's own loader reads them."""
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError

    try:
        found = pipe.lora_state_dict(file.parent, weight_name=file.name)
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(f"{file} cannot be read as a LoRA of {type(pipe).__name__}: {reason:.200}") from None
    state = found[0] if isinstance(found, tuple) else found
    return state if any(".lora_A." in name for name in state) else convert_unet_state_dict_to_peft(state)


def _check_layers(file: Path, state: Mapping[str, Tensor], component: str, network: torch.nn.Module) -> None:
    """Raise ValueError where a LoRA has no layers of this network, or layers of other widths."""
    kind, prefix = type(network).__name__, f"{component}."
    layers = {name.replace(".base_layer", ""): module for name, module in network.named_modules()}
    downs = {name: tensor for name, tensor in state.items() if name.startswith(prefix) and ".lora_A." in name}
    own = {name.removeprefix(prefix).split(".lora_A.")[0]: tensor for name, tensor in downs.items()}
    remedy = "load a pipeline of the family that it was trained on."
    if not own:
        first = next(iter(state), "no tensor")
        raise ValueError(f"{file} is a LoRA of another family: it has no layer of this {kind} ({first}, ...); {remedy}")
    for name, down in own.items():
        module = layers.get(name)
        if module is None:
            raise ValueError(f"{file} is a LoRA of another family: this {kind} has no layer {name}; {remedy}")
        width = getattr(module, "in_features", None) or getattr(module, "in_channels", down.shape[1])
        if width != down.shape[1]:
            raise ValueError(
                f"{file} is a LoRA of another family: its {name} takes {down.shape[1]} values, and this {kind}'s "
                f"{width}; {remedy}"
            )


def _load_network(pipe: Any, component: str, result: Result, scale: float) -> None:
    base: Any = getattr(pipe, component)
    assert result.network is not None
    if tuner_layers(base):
        raise ValueError("the pipeline has LoRAs in it: call pipe.unload_lora_weights() before a whole network.")
    network = type(base).from_pretrained(result.network, dtype=base.dtype)
    ours, theirs = ({name: t.shape for name, t in part.state_dict().items()} for part in (base, network))
    if ours != theirs:
        differ = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"{result.network} is a network of another family: {differ} is {_shape(theirs, differ)} there and "
            f"{_shape(ours, differ)} in this {type(base).__name__}; load a pipeline of the family that it is of."
        )
    if scale != 1:
        with torch.no_grad():
            for tuned, plain in zip(network.parameters(), base.parameters(), strict=True):
                tuned.copy_(torch.lerp(plain.float().cpu(), tuned.float(), scale))
    network.to(base.device).eval()
    pipe.register_modules(**{component: network})
    LOADED[network] = Loaded(result.run, None, base.to("cpu"))


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "missing"
