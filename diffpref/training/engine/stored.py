"""The reference's errors kept for later epochs and runs, under keys of all that they depend on."""

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from diffpref.backbones import Family
from diffpref.config import TrainConfig
from diffpref.data.cache import TensorStore, content_key
from diffpref.path import GaussianPath
from diffpref.training.models import Models
from diffpref.training.stream import Batch


@dataclass(frozen=True)
class StoredErrors:
    """Errors of the reference that earlier epochs and runs have computed, one tensor "k" for each group and draw.

    A key is a hash of all that the error depends on: the group's latents, noise, t and prompt as they are, and in
    `how` the probe's settings, the weights, the precision, the attention and the device. What does not match is not
    found, and computed."""

    store: TensorStore
    how: str

    def keys(self, batch: Batch) -> list[str]:
        """The key of each group of a batch that is still on the CPU."""
        candidates, names = batch.candidates, sorted(batch.candidates.cond)
        found = []
        for group in range(len(candidates.x0)):
            tensors = [candidates.x0[group], batch.eps[group], batch.t[group]]
            tensors += [candidates.cond[name][group] for name in names]
            parts = [part for tensor in tensors for part in (repr((tensor.dtype, tensor.shape)), _bytes(tensor))]
            found.append(content_key(self.how, *names, *parts))
        return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8 if tensor.ndim else tensor.dtype).numpy().tobytes()


def stored_identity(config: TrainConfig, family: Family, models: Models, device: torch.device) -> str:
    """What the reference's errors depend on beside the group and its draws."""
    processors = getattr(models.network, "attn_processors", {}).values()
    attention = sorted({f"{type(p).__name__} {getattr(p, 'backend', '')}" for p in processors})
    how = {
        "comparison": {name: value for name, value in asdict(config.comparison).items() if name != "stored_inversions"},
        "weights": models.base_hash,
        "adapter": config.adapter.adapter,
        "memory": config.engine.reference_memory,
        "precision": config.run.mixed_precision,
        "tf32": config.run.allow_tf32,
        "attention": attention,
        "device": device.type,
        "resolution": config.data.resolution,
        "path": path_identity(family, models.path),
    }
    return json.dumps(how, sort_keys=True)


def path_identity(family: Family, path: GaussianPath) -> str:
    """A name for the path and the weight of its errors: equal where both are equal at all noise levels."""
    t = path.at_share(torch.linspace(0.001, 0.998, 500))
    values = [path.alpha(t), path.sigma(t), path.a(t), path.b(t), family.loss_weight(path, t)]
    return content_key(*(value.double().cpu().numpy().tobytes() for value in values))


def open_store(config: TrainConfig, family: Family, models: Models, device: torch.device) -> StoredErrors:
    """The errors that runs with this cache have kept."""
    folder = (config.data.cache_dir or config.run.output_dir / "cache") / "reference"
    return StoredErrors(TensorStore(folder), stored_identity(config, family, models, device))
