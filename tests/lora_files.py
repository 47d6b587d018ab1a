"""LoRA files of a tiny network in the namings of other programs."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Matrices = Mapping[str, tuple[Tensor, Tensor]]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def matrices(network: torch.nn.Module, ends: Sequence[str] = ATTENTION, rank: int = 4, seed: int = 0) -> Matrices:
    """Down and up of every layer of these names, large enough to be seen."""
    draws = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in network.named_modules():
        if any(name.endswith("." + end) for end in ends):
            weight: Any = module.weight
            down = 0.2 * torch.randn(rank, *weight.shape[1:], generator=draws)
            found[name] = down, 0.2 * torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=draws)
    return found


def _processor(name: str) -> str:
    """The names of attention processors, which the first LoRA files of diffusers have."""
    return re.sub(r"(attn\d)\.to_(q|k|v|out)(\.0)?$", r"\1.processor.to_\2_lora", name)


def _numbered(name: str) -> str:
    """Stability's names of SDXL's blocks, numbered through, for the tiny UNet with one layer in a block."""
    part, _, rest = name.partition(".attentions.")
    layer, _, rest = rest.partition(".")
    if part == "mid_block":
        return f"middle_block.1.{rest}"
    block = int(part.rpartition(".")[2])
    return (
        f"input_blocks.{1 + 2 * block}.1.{rest}"
        if "down" in part
        else f"output_blocks.{2 * block + int(layer)}.1.{rest}"
    )


def write(file: Path, found: Matrices, naming: str, component: str, alpha: float | None) -> Path:
    """The LoRA in a naming; its alpha is beside the matrices or in the header, as each program does."""
    rank = len(next(iter(found.values()))[0])
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in found.items():
        if naming in ("kohya", "kohya-numbered", "onetrainer"):
            inner = _numbered(name) if naming == "kohya-numbered" else name
            start = "lora_transformer_" if naming == "onetrainer" else "lora_unet_"
            key = start + inner.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
        elif naming == "processor":
            key = f"{component}.{_processor(name)}"
            tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        elif naming == "older":
            tensors |= {f"{component}.{name}.lora.down.weight": down, f"{component}.{name}.lora.up.weight": up}
        else:
            start = "base_model.model." if naming == "peft-folder" else f"{component}."
            tensors |= {f"{start}{name}.lora_A.weight": down, f"{start}{name}.lora_B.weight": up}
    config = {"r": rank, "lora_alpha": alpha, "target_modules": list(found)}
    header = {}
    if naming == "diffusers" and alpha is not None:
        header["lora_adapter_metadata"] = json.dumps({f"{component}.{key}": value for key, value in config.items()})
    if naming == "peft-folder":
        (file.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "bias": "none", **config}))
    # Equal rows of queries, keys and values are one tensor in memory, which the format refuses.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, header or None)
    return file
