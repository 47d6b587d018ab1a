"""The reference at a block of batches: first, without a graph, many candidates at once, or from a store."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpref.engine.rows import Block
from diffpref.engine.runner import References
from diffpref.engine.stored import StoredErrors
from diffpref.errors import predict, prediction_error
from diffpref.files.store import TensorStore
from diffpref.probes import AnyBatch
from diffpref.transfer import moved
from diffpref.types import Backbone


@dataclass(frozen=True)
class ReferencePass:
    """Evaluates the reference, with its weights in place while `loaded` is open."""

    model: Backbone
    autocast: Callable[[], AbstractContextManager] = nullcontext
    loaded: Callable[[], AbstractContextManager] = nullcontext
    stored: StoredErrors | None = None

    def __call__(
        self, block: Block, forwards: Sequence[Sequence[int]], keys: Sequence[Sequence[str]] = ()
    ) -> References:
        """What is known of the reference at every row.

        Args:
            forwards: every row once, in the runs that are evaluated at once.
            keys: of the groups of each part, where errors are stored.
        """
        if self.stored is not None:
            return References(error=self._stored(block, forwards, keys, self.stored.store))
        found: dict[int, Tensor] = {}
        for rows in forwards:
            found.update(zip(rows, self._predict(block, rows).unbind(), strict=True))
        return References(prediction=torch.stack([found[row] for row in range(len(block.rows))]))

    def keys(self, batch: AnyBatch) -> list[str]:
        """The names under which the errors of a batch's groups are stored; none where they are not."""
        return self.stored.keys(batch) if self.stored is not None else []

    def knows(self, keys: Sequence[Sequence[str]]) -> bool:
        """Whether the errors of all these groups are stored."""
        return self.stored is not None and all(name in self.stored.store for names in keys for name in names)

    def _predict(self, block: Block, rows: Sequence[int]) -> Tensor:
        with torch.no_grad(), self.autocast():
            return predict(self.model, block.probe(rows))[:, 0]

    def _stored(
        self, block: Block, forwards: Sequence[Sequence[int]], keys: Sequence[Sequence[str]], store: TensorStore
    ) -> Tensor:
        """The errors of all rows, from the store where it has them; what it lacks is added to it."""
        device = block.parts[0].probe.x_t.device
        found: dict[int, Tensor] = {}
        fresh: dict[str, tuple[int, ...]] = {}
        for groups, names in zip(block.places, keys, strict=True):
            for rows, name in zip(groups, names, strict=True):
                if name in store:
                    found.update(zip(rows, moved(store.get(name)["error"], device).unbind(), strict=True))
                else:
                    fresh[name] = rows
        missing = {row for rows in fresh.values() for row in rows if row not in found}
        for run in forwards:
            rows = [row for row in run if row in missing]
            if not rows:
                continue
            probe = block.probe(rows)
            errors = prediction_error(self._predict(block, rows)[:, None], probe.target, probe.weight)
            found.update(zip(rows, errors[:, 0].unbind(), strict=True))
        for name, rows in fresh.items():
            store.add(name, {"error": torch.stack([found[row] for row in rows])})
        return torch.stack([found[row] for row in range(len(block.rows))])
