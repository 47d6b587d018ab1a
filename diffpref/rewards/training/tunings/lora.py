"""Low-rank matrices beside a CLIP's layers (Hu et al. 2022), merged into what the run writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from diffpref.backbones.adapters.lora import ADAPTER, load_lora_state, lora_state
from diffpref.files import atomic
from diffpref.rewards.training.tunings.tuning import on_the_cpu

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class LoRATuning:
    """LoRA in both towers, which is merged into the output; the adapter is kept next to it."""

    rank: Annotated[int, Ge(1)] = 16
    """Rank of the LoRA matrices; alpha equals it, so the effective scale is 1."""
    lora_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Names of the layers that get LoRA, in both towers."""

    def choose(self, clip: "CLIPModel", *, seed: int) -> None:
        """Freeze the model and add LoRA in both towers, alpha equal to rank: at step 0 its scores are unchanged.

        By peft alone: transformers' own `add_adapter` refuses versions of peft that we allow."""
        from peft import LoraConfig, inject_adapter_in_model

        targets = list(self.lora_target_modules)
        names = [name for name, _ in clip.named_modules()]
        missing = [target for target in targets if not any(name.endswith(target) for name in names)]
        if missing or not targets:
            raise ValueError(
                f"lora_target_modules: no layer of the model ends in {missing}; leave it out for the default."
            )
        clip.requires_grad_(False)
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=targets)
        # peft draws from the global generator; two runs of one seed must start from the same matrices.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, clip, ADAPTER)

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        return lora_state(network)

    def load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        load_lora_state(network, {**state})

    def merged(self, clip: "CLIPModel") -> dict[str, Tensor]:
        """W + B A in the place of W."""
        from peft.tuners.lora import LoraLayer

        state = {name: tensor for name, tensor in clip.state_dict().items() if ".lora_" not in name}
        for name, module in clip.named_modules():
            if isinstance(module, LoraLayer):
                (adapter,) = module.active_adapters
                key = f"{name}.base_layer.weight"
                state[key] = state[key] + module.get_delta_weight(adapter).to(state[key].dtype)  # type: ignore[operator]
        return on_the_cpu({name.replace(".base_layer.", "."): tensor for name, tensor in state.items()})

    def save(self, clip: "CLIPModel", folder: Path) -> None:
        """The LoRA alone in peft's format, in `adapter`; a trained logit_scale is in the merged model only."""
        from safetensors.torch import save_file

        # peft wraps the model twice when it loads an adapter, and looks for the tensors under these names.
        tensors = {f"base_model.model.{name}": t.detach().cpu().contiguous() for name, t in lora_state(clip).items()}
        with atomic.new_folder(folder / "adapter") as new:
            save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
            clip.peft_config[ADAPTER].save_pretrained(new)
