"""The reference's errors kept for later epochs and runs, under keys of all that they depend on."""

import json
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from diffpref.backbones import Family
from diffpref.backbones.prompts import split
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.probes import AnyBatch
from diffpref.training.config import TrainConfig
from diffpref.training.models import Models
from diffpref.training.settings import to_mapping

HOW = "how.json"
"""The file that says how the errors beside it were computed."""


@dataclass(frozen=True)
class StoredErrors:
    """Errors of the reference that earlier epochs and runs have computed, one tensor "k" for each group and draw.

    A key is a hash of all that the error depends on: the group's latents, noise, t and prompt as they are, and in
    `how` the probe's settings, the weights, the precision, the attention and the device. Groups that are not found are
    computed."""

    store: TensorStore
    how: str

    def keys(self, batch: AnyBatch) -> list[str]:
        """The key of each group of a batch that is still on the CPU."""
        candidates = batch.candidates
        found = []
        # Without the padding, which depends on the prompts beside it.
        for group, prompt in enumerate(split(candidates.cond)):
            names = sorted(prompt)
            tensors = [*batch.inputs(group), *(prompt[name] for name in names)]
            parts = [part for tensor in tensors for part in (repr((tensor.dtype, tensor.shape)), _bytes(tensor))]
            found.append(content_key(self.how, *names, *parts))
        return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8 if tensor.ndim else tensor.dtype).numpy().tobytes()


def what_is_compared(config: TrainConfig, family: Family) -> dict[str, object]:
    """What the reference's errors are of, beside the group and its draws: other values are other errors."""
    base = asdict(family.checkpoint)
    weights = base.pop("network_weights")
    return {
        "base": base,
        "network_weights": str(weights),
        "probe": dict(config.probe.identity()),
        "path": path_identity(family),
    }


def how_it_is_computed(config: TrainConfig, models: Models, device: torch.device) -> dict[str, object]:
    """What must be as it was for kept errors to stand for the reference's: its weights, and all that rounds them."""
    flat, processors = to_mapping(config), getattr(models.network, "attn_processors", {}).values()
    attention = sorted({f"{type(p).__name__} {getattr(p, 'backend', '')}".strip() for p in processors})
    return {
        "weights": models.base_hash,
        "adapter": flat["adapter"],
        "reference_memory": flat.get("reference_memory", "resident"),
        "mixed_precision": config.run.mixed_precision,
        "allow_tf32": config.run.allow_tf32,
        "attention": ", ".join(attention),
        "device": device.type,
    }


def path_identity(family: Family) -> str:
    """A name for the path and the weight of its errors: equal where both are equal at all noise levels."""
    path = family.path
    t = path.at_share(torch.linspace(0.001, 0.998, 500))
    values = [path.alpha(t), path.sigma(t), path.a(t), path.b(t), family.loss_weight(t)]
    return content_key(*(value.double().cpu().numpy().tobytes() for value in values))


def open_store(config: TrainConfig, family: Family, models: Models, accelerator: Accelerator) -> StoredErrors:
    """The errors that runs with this cache have kept of this reference.

    Raises:
        ValueError: they were computed in another way, such as another precision; names it and the remedy.
    """
    what = json.dumps(what_is_compared(config, family), sort_keys=True)
    how = how_it_is_computed(config, models, accelerator.device)
    folder = (config.data.cache_dir or config.run.output_dir / "cache") / "reference" / content_key(what)
    note = folder / HOW
    if note.is_file():
        then = json.loads(note.read_text())
        changed = {name: (then.get(name), now) for name, now in how.items() if then.get(name) != now}
        if changed:
            others = "; ".join(f"{name} {one!r} then, {now!r} now" for name, (one, now) in changed.items())
            raise ValueError(
                f"{folder} keeps errors of this reference that were computed in another way ({others}), and "
                "they would not be this run's to the last digits: use the same settings, another cache_dir, or delete "
                "that folder."
            )
    elif accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(note, how)
    return StoredErrors(TensorStore(folder), content_key(what, json.dumps(how, sort_keys=True)))
