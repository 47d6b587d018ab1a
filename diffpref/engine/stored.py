"""The reference's errors kept for later epochs and runs, under keys of all that they depend on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffpref.backbones.prompts import split
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.path import GaussianPath
from diffpref.probes import AnyBatch

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


def path_identity(path: GaussianPath, weight: Callable[[Tensor], Tensor]) -> str:
    """A name for the path and the weight of its errors: equal where both are equal at all noise levels."""
    t = path.at_share(torch.linspace(0.001, 0.998, 500))
    values = [path.alpha(t), path.sigma(t), path.a(t), path.b(t), weight(t)]
    return content_key(*(value.double().cpu().numpy().tobytes() for value in values))


def attention_of(network: torch.nn.Module) -> str:
    """The attention processors of a network, for people."""
    processors = getattr(network, "attn_processors", {}).values()
    return ", ".join(sorted({f"{type(p).__name__} {getattr(p, 'backend', '')}".strip() for p in processors}))


def open_store(root: Path, what: Mapping[str, object], how: Mapping[str, object], *, main: bool) -> StoredErrors:
    """The errors that runs with this cache have kept of this reference.

    Args:
        root: folder of all stores.
        what: is compared, beside the group and its draws: other values are other errors, in another folder.
        how: it is computed: what must be as it was for kept errors to stand for the reference's to the last digits.
        main: this process writes.

    Raises:
        ValueError: they were computed in another way, such as another precision; names it and the remedy.
    """
    compared = json.dumps(what, sort_keys=True)
    folder = root / content_key(compared)
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
    elif main:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(note, how)
    return StoredErrors(TensorStore(folder), content_key(compared, json.dumps(how, sort_keys=True)))
