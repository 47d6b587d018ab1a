"""HPSv3's folder on a small Qwen2-VL of random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.small_qwen import fill, save_model


def published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers 4.45, which HPSv3.safetensors has."""
    short = {"model.language_model.": "model.", "model.visual.": "visual."}
    return {
        next((new + n[len(old) :] for old, new in short.items() if n.startswith(old)), n): t for n, t in tensors.items()
    }


def head() -> torch.nn.Sequential:
    """The head alone, under the names that it is saved with."""
    layers = [torch.nn.Linear(32, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05), torch.nn.Linear(1024, 16)]
    module = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    fill(module)
    return module


def write_model(folder: Path) -> Path:
    """A base model's folder, its vocabulary padded as published, and HPSv3.safetensors of one token more than its
    tokenizer."""
    model = save_model(folder, "qwen2_vl")
    model.resize_token_embeddings(model.config.text_config.vocab_size + 1)
    fill(model)
    tensors = published({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    tensors |= {f"rm_head.{name}": tensor for name, tensor in head().state_dict().items()}
    save_file(tensors, folder / "HPSv3.safetensors")
    return folder
