"""The figures of a run between two summaries, over all processes, and its alarms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffpref.engine.step import Compared
from diffpref.training.health import pair_table, summarize
from diffpref.transfer import moved
from diffpref.types import Alarm


@dataclass(kw_only=True)
class Meter:
    """Collects what a summary is made of."""

    accelerator: Accelerator
    time_fraction: Callable[[Tensor], Tensor]
    beta: float
    """Nats of a reward for each unit of the log-ratio."""
    alarms: Sequence[Alarm]
    tables: list[Tensor] = field(default_factory=list)
    remembered: list[Mapping[str, float]] = field(init=False)
    """What each alarm keeps from summary to summary."""

    def __post_init__(self) -> None:
        self.remembered = [{} for _ in self.alarms]

    def add(self, batches: Sequence[Compared]) -> None:
        """Count the batches of a step."""
        for batch in batches:
            fraction = self.time_fraction(batch.t)
            rows = pair_table(batch.errors, batch.scores, batch.loss, fraction, self.beta)
            self.tables.append(torch.cat([rows, moved(batch.skipped, rows.device)[:, None].to(rows)], 1))

    def summary(self) -> tuple[dict[str, float], float]:
        """The metrics since the last summary, and the share of candidates that had no backward; starts again."""
        table: Any = self.accelerator.gather(torch.cat(self.tables))
        self.tables.clear()
        return summarize(table[:, :-1]), float(table[:, -1].mean())

    def trouble(self, metrics: Mapping[str, float]) -> str | None:
        """The texts of the alarms, one a line, or None while all is well."""
        found = [alarm(metrics, kept) for alarm, kept in zip(self.alarms, self.remembered, strict=True)]
        self.remembered = [kept for _, kept in found]
        return "\n".join(text for text, _ in found if text) or None

    def pending(self) -> dict[str, Any]:
        """What no summary has counted yet: it belongs to the first summary after a resume."""
        left: Any = self.accelerator.gather(torch.cat(self.tables)) if self.tables else torch.empty(0)
        return {"tables": left.cpu(), "alarms": [dict(kept) for kept in self.remembered]}

    def restore(self, pending: Mapping[str, Any]) -> None:
        """Go on from what `pending` gave."""
        accelerator = self.accelerator
        kept = pending.get("alarms", [])
        self.remembered = [*kept, *({} for _ in self.alarms[len(kept) :])]
        share = slice(accelerator.process_index, accelerator.process_index + 1)
        self.tables += pending["tables"].to(accelerator.device).chunk(accelerator.num_processes)[share]
