"""auto: the fastest of the package's modes whose memory fits, as one candidate was measured."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True)
class Auto:
    """Measure, and take the fastest mode that fits; turns gradient checkpointing on where nothing faster fits."""

    micro_batch: Annotated[int, Ge(0)] = 0
    """Pictures in one graph, where the mode that is taken cuts a batch; 0 takes the most that fit."""
