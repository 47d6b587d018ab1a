"""Both models at fixed groups, times and noise: what a run is measured on beside the groups that it learns from.

Nothing here draws from a global generator or moves a weight, so that a run trains as it would without.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones import Family
from diffpref.errors import model_error
from diffpref.path import GaussianPath
from diffpref.probe import forward_probe
from diffpref.probes import Batch
from diffpref.training.models import Models
from diffpref.training.stream import Drawing, Draws, Groups
from diffpref.types import Backbone, Candidates, Cond, Probe

POINTS = 32
"""Places where few images are compared: each gets several times and noises until there are so many."""

Place = tuple[int, int]
"""Which image or group, and which of its draws of time and noise."""


@dataclass(frozen=True)
class _Autocast:
    """A model under the run's autocast, and only it: there torch cannot stack float16 latents beside bfloat16."""

    model: Backbone
    accelerator: Accelerator

    @property
    def path(self) -> GaussianPath:
        return self.model.path

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        with self.accelerator.autocast():
            return self.model(x_t, t, cond)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Compares the models of a run in one process, at forward noise, whatever the run's own probe is."""

    family: Family
    models: Models
    accelerator: Accelerator
    loaded: Callable[[], AbstractContextManager[None]]
    """Inside, the reference's weights are in place."""
    drawing: Drawing
    at_once: int
    """Images of one forward pass."""

    @contextmanager
    def still(self, *, reference: bool) -> Iterator[Backbone]:
        """One of the models, without a graph; in the mode of training, in which both lay out their tensors alike."""
        with self.loaded() if reference else nullcontext(), torch.no_grad():
            model = self.models.reference if reference else self.family.backbone(self.models.network)
            yield _Autocast(model, self.accelerator)

    def errors(self, batches: Iterable[Batch], *, reference: bool) -> Float[Tensor, "n k"]:
        """The errors of one of the models, with the weight that the backbone is trained with; on the CPU."""
        with self.still(reference=reference) as model:
            return torch.cat([model_error(model, self._probe(batch)).float().cpu() for batch in batches])

    def draws(self, name: str, places: Sequence[Place]) -> Draws:
        """The times and noise of these places, neither mirrored nor with the empty prompt."""
        plain = replace(self.drawing, flip=False, empty=0.0)
        return plain.draws([(name, *place) for place in places])

    def candidates(self, groups: Groups, index: int) -> Candidates:
        """The candidates of one group, of whatever kind, with its prompt complete."""
        return groups.batch([index], self.draws("candidates", [(index, 0)])).candidates

    def batches(self, groups: Groups, indices: Sequence[int], name: str) -> Iterator[Batch]:
        """The groups of images at these indices, at all their times and noises, read when they are asked for."""
        k = self.candidates(groups, indices[0]).scores.shape[1]
        for part in parts(places(len(indices)), max(1, self.at_once // k)):
            batch = groups.batch([indices[which] for which, _ in part], self.draws(name, part))
            assert isinstance(batch, Batch), "images are compared at forward noise"
            yield batch

    def _probe(self, batch: Batch) -> Probe:
        batch = batch.to(self.accelerator.device)
        candidates = batch.candidates
        probe = forward_probe(self.family.path, candidates.x0, batch.t, batch.eps, candidates.cond)
        return replace(probe, weight=probe.weight * self.family.loss_weight(probe.t).to(probe.weight))


def parts(places: Sequence[Place], size: int) -> Iterator[Sequence[Place]]:
    """The places, at most `size` at a time."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


def places(count: int) -> list[Place]:
    """So many images, each with as many draws as it takes to `POINTS`."""
    return [(which, draw) for which in range(count) for draw in range(max(1, -(-POINTS // count)))]
