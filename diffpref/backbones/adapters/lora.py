"""LoRA on a network: attach, switch off for the reference, save so that every reader finds the right scale."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from diffpref.backbones import Family, Kind
from diffpref.backbones.adapters.adapter import Adapter, Words
from diffpref.backbones.adapters.base_adapters import TRAINED_FILE, stacked
from diffpref.backbones.adapters.kohya import save_kohya
from diffpref.backbones.adapters.lora_file import LORA_FILE, UP, attached, read_lora
from diffpref.backbones.adapters.lora_start import at_scale, check_same_layers
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.backbones.adapters.streamed import StreamedReference
from diffpref.backbones.adapters.trained import trainable
from diffpref.files import atomic
from diffpref.types import Backbone

ADAPTER = "default"
# The fields that every peft since 0.10 reads; a newer peft's other fields make an older one refuse the file.
PORTABLE = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "peft_type")


@dataclass(frozen=True)
class LoRA:
    """Low-rank matrices beside the network's layers (Hu et al. 2022), in float32; the network stays as it is.

    It has the run's precision already, as in a pipeline that draws. Autocast would only make its normalizations, which
    compute in float32 either way, write float32 too: a fifth more memory and a third more launches."""

    added: ClassVar[bool] = True
    autocast: ClassVar[bool] = False
    words: ClassVar[Words] = Words("adapter", "A LoRA for", "pipe.load_lora_weights(folder)\n", ("lora",))

    rank: Annotated[int, Ge(1)] = 64
    """Rank of the LoRA matrices."""
    lora_alpha: Annotated[float, Gt(0)] | None = None
    """The matrices' product is multiplied by lora_alpha / rank; by default it equals the rank, so the scale is 1."""
    lora_target_modules: tuple[str, ...] = ()
    """Names of the layers that get LoRA; by default the attention projections of the backbone."""
    lora_backend: Literal["fused", "peft"] = "fused"
    """Who computes the LoRA layers: one operation each, in the base's precision, or peft. The files are the same."""
    adapter_weights: Path | None = None
    """Train this LoRA on: a file of the same rank and layers, or a run's output folder. The reference is the base model
    without it; to start both from a LoRA, of any rank and layers, name it in base_adapters."""

    @property
    def alpha(self) -> float:
        """lora_alpha, or what stands for it."""
        return self.rank if self.lora_alpha is None else self.lora_alpha

    @property
    def starts_equal(self) -> bool:
        return self.adapter_weights is None

    def identity(self) -> Mapping[str, object]:
        # Runs from before there was an alpha had none.
        alpha = None if self.alpha == self.rank else self.alpha
        return {"rank": self.rank, "lora_alpha": alpha, "lora_target_modules": list(self.lora_target_modules)}

    def counted(self) -> Adapter:
        return LoRA(self.rank, lora_target_modules=self.lora_target_modules)

    def check(self, family: Kind, name: str = "this backbone") -> None:
        if not (self.lora_target_modules or family.lora_targets):
            raise ValueError(f"{name} is trained as a whole, without LoRA: set adapter: full.")

    def check_start(self, family: Family) -> Sequence[str]:
        if self.adapter_weights is None:
            return ()
        # It merges base adapters, and so imports this folder.
        from diffpref.backbones.loading import bare_network

        network = bare_network(family)
        file = read_lora(self.adapter_weights, network, family.component, key="adapter_weights", values=False)
        attach_lora(network, self.rank, self._targets(family), seed=0)
        check_same_layers(file, attached(network, ADAPTER), network)
        other = "the base model with its base_adapters" if family.checkpoint.base_adapters else "the bare base model"
        said = (
            f"adapter_weights {file.file}: the policy starts from it, the reference is {other}; name it in "
            "base_adapters to start both from it"
        )
        return (said, *file.remarks)

    def check_policy_inverts(self) -> None:
        """It can: the reference's weights are the policy's own."""

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        return precision

    def copy(self, network: torch.nn.Module, precision: torch.dtype) -> torch.nn.Module | None:
        return None

    def reference_bytes(self, parameters: int, precision: torch.dtype) -> int:
        return 0

    def attach(self, network: torch.nn.Module, family: Kind, *, seed: int) -> Sequence[str]:
        targets = self._targets(family)
        line = attach_lora(network, self.rank, targets, alpha=self.alpha, seed=seed, backend=self.lora_backend)
        if self.adapter_weights is not None:
            file = read_lora(self.adapter_weights, network, family.component, key="adapter_weights")
            check_same_layers(file, attached(network, ADAPTER), network)
            self.load(network, at_scale(file, self.alpha / self.rank))
        return (line,)

    def reference(self, model: Backbone, network: torch.nn.Module) -> Backbone:
        return AdapterOff(model, network)

    def streamed(self, network: torch.nn.Module) -> StreamedReference | None:
        return None

    def state(self, network: torch.nn.Module) -> dict[str, Tensor]:
        return lora_state(network)

    def load(self, network: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        load_lora_state(network, {**state})

    def save(self, network: torch.nn.Module, family: Family, folder: Path) -> None:
        with atomic.new_folder(folder / "lora.new") as new:
            family.save_lora(network, new)
            if entries := family.checkpoint.base_adapters:
                os.replace(new / LORA_FILE, new / TRAINED_FILE)
                trained = attached(network, ADAPTER)
                family.save_lora(stacked(network, family.component, entries, trained, adapter=ADAPTER), new)
        for file in sorted((folder / "lora.new").iterdir()):
            os.replace(file, folder / file.name)
        (folder / "lora.new").rmdir()

    def continued(self, output: Path, base: Path | None) -> tuple[Adapter, Path | None]:
        trained = output / TRAINED_FILE
        return replace(self, adapter_weights=trained if trained.is_file() else output / LORA_FILE), base

    def _targets(self, family: Kind) -> tuple[str, ...]:
        return self.lora_target_modules or family.lora_targets


def attach_lora(
    network: torch.nn.Module,
    rank: int,
    targets: Sequence[str],
    *,
    seed: int,
    alpha: float | None = None,
    backend: Literal["fused", "peft"] = "fused",
) -> str:
    """Freeze the network and add trainable LoRA in float32: at step 0 its output is unchanged.

    Args:
        alpha: what is added has the scale alpha / rank; by default it is the rank.

    Returns a line that says which layers are computed by our fused operation and which by peft.

    Raises:
        ValueError: a rank below 1, or no layer with one of the target names.
    """
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"rank must be 1 or above, got {rank}.")
    names = [name for name, _ in network.named_modules()]
    missing = [target for target in targets if not any(name.endswith(target) for name in names)]
    if missing:
        raise ValueError(
            f"lora_target_modules: no layer of the network ends in {missing}; leave it out for the default."
        )
    network.requires_grad_(False)
    alpha = rank if alpha is None else alpha
    # peft declares a whole number; it and the files take any.
    whole: Any = int(alpha) if alpha == int(alpha) else alpha
    config = LoraConfig(r=rank, lora_alpha=whole, init_lora_weights="gaussian", target_modules=list(targets))
    # peft draws from the global generator; two runs of one seed must start from the same matrices.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    for parameter in trainable(network):
        parameter.data = parameter.data.float()
    if backend == "peft":
        return "LoRA: all layers by peft"
    from diffpref.backbones.adapters.lora_layers import fuse_lora

    return fuse_lora(network)


def lora_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by peft's names, as they are (no copy)."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(network, adapter_name=ADAPTER)


def load_lora_state(network: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Put tensors into the adapter that is there; never a second adapter beside it, which would train nothing."""
    from peft.utils import set_peft_model_state_dict

    result = set_peft_model_state_dict(network, state, adapter_name=ADAPTER)
    if result.unexpected_keys or any("lora_" in key for key in result.missing_keys):
        raise ValueError("the saved LoRA has other layers than this run: check rank and lora_target_modules.")


def save_unet_lora(network: torch.nn.Module, base: str, folder: Path) -> None:
    """Write the adapter of a UNet into the folder as diffusers, ComfyUI and A1111 read it.

    Args:
        base: kohya's name of the base model's version, like "sdxl_base_v1-0".
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_kohya(attached(network, ADAPTER), base, folder / LORA_FILE)


def unscaled(network: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter's tensors and metadata for a reader that knows no alpha: the scale is in the matrices, alpha is rank.

    The metadata is the part of the adapter's config that all versions of peft read."""
    scales = {name + UP: layer.scale for name, layer in attached(network, ADAPTER).items()}
    state = lora_state(network)
    scaled = {name: tensor * scales[name] for name, tensor in state.items() if scales.get(name, 1.0) != 1}
    config = network.peft_config[ADAPTER].to_dict()  # type: ignore[index]
    config |= {"lora_alpha": config["r"], "alpha_pattern": dict(config["rank_pattern"])}
    kept = {name: config[name] for name in PORTABLE if name in config}
    return {**state, **scaled}, {
        name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()
    }
