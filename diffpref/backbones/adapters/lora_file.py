"""Reading a LoRA file of any of the usual namings: its matrices and scales, as stock diffusers loads them."""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones.adapters.lora_names import PEFT_PREFIX, Named, peft_names
from diffpref.backbones.weight_files import find_file, read_tensors

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the adapter's config in a file's header."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Layer:
    """One layer's change: scale * up @ down is added to its weight."""

    down: Tensor
    """ "r i", or "r i kh kw" for a convolution."""
    up: Tensor
    """ "o r", or "o r 1 1"."""
    scale: float
    """alpha / rank."""

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by the names of the network's layers."""

    file: Path
    layers: Mapping[str, Layer]
    remarks: tuple[str, ...] = ()
    """What is not as a user may think, for the log."""


def read_lora(
    source: Path | str, network: torch.nn.Module, component: str, *, key: str, values: bool = True
) -> LoraFile:
    """The layers of a LoRA file, each with the scale that stock diffusers gives it.

    Read are the names of diffusers and peft, of diffusers' older scripts (`lora.down.weight`, `to_q_lora.down.weight`),
    and kohya's (`lora_unet_...lora_down.weight` with alpha).

    Args:
        source: the file, a folder with it, or the name of one on the hub.
        network: of the class and configuration that the file is for; on any device, also meta.
        component: the network's folder in a pipeline, unet or transformer.
        key: the setting that names the file, for messages.
        values: else only the header is read, and the matrices are on the meta device.

    Raises:
        ValueError: no such file, no plain LoRA (as DoRA, LoKr, LoHa), or layers that the network has not or in other
            shapes; names the file, the first such layer and the remedy.
    """
    if not hasattr(network, "load_lora_adapter"):
        raise ValueError(f"{key}: stock diffusers reads no LoRA of a {type(network).__name__}; leave {key} out.")
    file = find_lora(source, key=key)
    tensors, header = read_tensors(file, key=key, values=values)
    try:
        named = peft_names(tensors, network, component)
    except (ValueError, KeyError) as problem:
        raise ValueError(f"{key} {file}: {_short(problem)}: the file is not for this base model.") from None
    _check(named, network, f"{key} {file}")
    metadata = _metadata(file, header, component, tensors)
    try:
        scales = _scales(named, metadata, network, component)
    except (ValueError, KeyError, TypeError, RuntimeError) as problem:
        raise ValueError(f"{key} {file} cannot be loaded by diffusers: {_short(problem)}.") from None
    layers = {
        name: Layer(named.tensors[name + DOWN], named.tensors[name + UP], scale) for name, scale in scales.items()
    }
    return LoraFile(file, layers, tuple(_remarks(layers, named, component, f"{key} {file}")))


def find_lora(source: Path | str, *, key: str) -> Path:
    """The LoRA file that a path or a name on the hub means; ValueError where there is none."""
    place = Path(source)
    if place.is_file():
        return place
    names = [LORA_FILE, PEFT_FILE]
    if place.is_dir() and len(only := sorted(place.glob("*.safetensors"))) == 1:
        names.append(only[0].name)
    file = find_file(source, names, key=key)
    if file is None:
        raise ValueError(f"{key} {source} is no file, and has no {LORA_FILE} and no {PEFT_FILE}: name the LoRA's file.")
    return file


def attached(network: torch.nn.Module, adapter: str) -> dict[str, Layer]:
    """The LoRA that a network holds under this name, as it is (no copy)."""
    from peft.tuners.lora.layer import LoraLayer

    found: dict[str, Layer] = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            down: Any = module.lora_A[adapter]
            up: Any = module.lora_B[adapter]
            found[name] = Layer(down.weight, up.weight, module.scaling[adapter])
    return found


def bare_copy(network: Any) -> Any:
    """A network of the same class and configuration on the meta device, without weights and adapters."""
    with torch.device("meta"):
        return type(network).from_config(network.config)


def _metadata(
    file: Path, header: Mapping[str, str], component: str, tensors: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """The adapter's config where the file has one, as `load_lora_adapter` takes it."""
    if METADATA in header:
        return json.loads(header[METADATA])
    config = file.with_name(PEFT_CONFIG)
    if config.is_file() and any(name.startswith(PEFT_PREFIX) for name in tensors):
        wanted = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
        saved = json.loads(config.read_text(encoding="utf-8"))
        layers = sorted({name.removeprefix(PEFT_PREFIX).split(".lora_")[0] for name in tensors})
        found = {name: saved[name] for name in wanted if saved.get(name) is not None}
        return {f"{component}.{name}": value for name, value in {**found, "target_modules": layers}.items()}
    return None


def _check(named: Named, network: torch.nn.Module, name: str) -> None:
    """Raise ValueError where the tensors are no plain LoRA of this network's layers."""
    tensors, modules = named.tensors, dict(network.named_modules())
    if not any(each.endswith(DOWN) for each in tensors):
        raise ValueError(f"{name} has no LoRA of the {type(network).__name__}: name a file of one.")
    for each, tensor in tensors.items():
        layer, end = each.split(".lora_")[0], each.removeprefix(each.split(".lora_")[0])
        if end not in (DOWN, UP) or layer + (UP if end == DOWN else DOWN) not in tensors:
            raise ValueError(
                f"{name} has {each}, which is no part of a plain LoRA: DoRA, LoKr, LoHa and biases are not read. Merge "
                "it into the base model with the program that made it, and name the result in network_weights."
            )
        weight = getattr(modules.get(layer), "weight", None)
        if weight is None:
            raise ValueError(
                f"{name} has the layer {layer}, which this base model's {type(network).__name__} has not: it is for "
                "another architecture. Name a LoRA for this base model."
            )
        fits = tensor.shape[1:] == weight.shape[1:] if end == DOWN else tensor.shape[0] == weight.shape[0]
        if not fits:
            raise ValueError(
                f"{name}: {each} has the shape {tuple(tensor.shape)} and changes a weight that has "
                f"{tuple(weight.shape)} in this base model: it is for another architecture. Name a LoRA for this base "
                "model."
            )


def _scales(
    named: Named, metadata: dict[str, Any] | None, network: torch.nn.Module, component: str
) -> dict[str, float]:
    """The scale of each layer in a stock network that has loaded the tensors; no weight is needed for that."""
    bare: Any = bare_copy(network)
    with warnings.catch_warnings():
        # peft's warning of alphas that it ignores; `_remarks` says it in our words.
        warnings.filterwarnings("ignore", message=".*alpha_pattern keys", category=RuntimeWarning)
        bare.load_lora_adapter(
            {f"{component}.{name}": tensor.to("meta") for name, tensor in named.tensors.items()},
            prefix=component,
            network_alphas=named.alphas,
            metadata=metadata,
            adapter_name="read",
            low_cpu_mem_usage=True,
        )
    return {name: layer.scale for name, layer in attached(bare, "read").items()}


def _remarks(layers: Mapping[str, Layer], named: Named, component: str, name: str) -> Iterator[str]:
    """What is read otherwise than the file's maker may think."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    if named.texts:
        yield f"{name}: {named.texts} tensors of text encoders are left out; the network alone is trained"
    alphas = {each.removeprefix(f"{component}.").removesuffix(".alpha"): a for each, a in (named.alphas or {}).items()}
    alphas = {each.split(".lora_")[0]: alpha for each, alpha in convert_unet_state_dict_to_peft(alphas).items()}
    other = [each for each, a in alphas.items() if abs(layers[each].scale - a / layers[each].rank) > 1e-6]
    if other:
        first, layer = other[0], layers[other[0]]
        yield (
            f"{name}: its alphas differ from layer to layer, and diffusers gives {len(other)} of them another scale "
            f"(first: {first}, {layer.scale:g} in place of {alphas[first] / layer.rank:g}); read as diffusers does"
        )


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:300].rstrip(".")
