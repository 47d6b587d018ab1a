"""Counted on meta tensors: what a step costs in each mode, beside the published scripts' order with stock parts."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.encoders import build_encoders
from benchmarks.peers import count_peer, make_stock
from diffpref.backbones.adapters import Adapter, Full, LoRA
from diffpref.counting.architectures import EDM, SD3, SDXL, Architecture
from diffpref.counting.counters import GIB
from diffpref.counting.kept import ADAPTER
from diffpref.counting.steps import Count, Ready, Setup, count_step, graph_bytes, make_ready
from diffpref.engine.modes import MODES

PEER, UNCACHED = "peer: peft, joint", "peer, encoders each step"


@dataclass(frozen=True)
class Subject:
    """A network as it is fine-tuned."""

    architecture: Architecture
    adapter: Adapter = LoRA()
    precision: str = "bf16"
    side: int | None = None
    """Of its images, where it has one size alone."""
    pairs: int | None = None
    """Of a batch, where it is trained with many."""

    def setups(self, sizes: Sequence[int]) -> list[Setup]:
        """At each size."""
        sides = sizes if self.side is None else [self.side]
        return [Setup(self.architecture, side, self.adapter, precision=self.precision) for side in sides]

    def batches(self, pairs: Sequence[int]) -> Sequence[int]:
        """How many pairs are a batch."""
        return pairs if self.pairs is None else [self.pairs]


SUBJECTS: Mapping[str, Subject] = {
    "sdxl": Subject(SDXL),
    "sd3": Subject(SD3),
    "edm": Subject(EDM, Full(), "no", side=32, pairs=64),
}


@dataclass(frozen=True)
class Row:
    """A step of some groups; bytes are above the weights of the network and of the reference."""

    model: str
    resolution: int
    adapter: str
    step: str
    """joint, deferred, two-pass, or the peer's."""
    checkpointing: bool
    groups: int
    candidates: int
    """In a group: 2 are a pair."""
    teraflops_a_pair: float
    """Of two candidates, reference, forward and backward."""
    peak_gib: float
    graph_gib: float
    """What one candidate's graph holds between forward and backward."""
    launches: int


def counted(
    models: Sequence[str],
    sizes: Sequence[int],
    pairs: Sequence[int],
    lists: Sequence[int] = (),
    checkpointing: Sequence[bool] = (False, True),
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """All rows: LoRA of rank 64 in bfloat16, and EDM as a whole in float32.

    Args:
        pairs: how many pairs are a batch.
        lists: lengths of lists, of which one is a batch.
    """
    rows: list[Row] = []
    for name in models:
        subject = SUBJECTS[name]
        for setup in subject.setups(sizes):
            for on in checkpointing:
                rows += rows_of(
                    replace(setup, checkpointing=on),
                    subject.batches(pairs),
                    lists if subject.pairs is None else (),
                )
                (say or _say)(f"counted {rows[-1].model} {rows[-1].resolution}, {len(rows)} rows")
    return [asdict(row) for row in rows]


def rows_of(setup: Setup, pairs: Sequence[int], lists: Sequence[int] = ()) -> list[Row]:
    """Our modes for each batch, and for pairs the peers' order where there is LoRA, also as it is without a cache."""
    ready = make_ready(setup)
    batches = [*((n, 2) for n in pairs), *((1, k) for k in lists)]
    found = [
        _row(ready, name, *size, count_step(ready, mode(), groups=size[0], k=size[1]))
        for size in batches
        for name, mode in MODES.items()
    ]
    if setup.adapter.added:
        stock = make_stock(setup)
        found += [_row(stock, PEER, n, 2, count_peer(stock, pairs=n)) for n in pairs]
        if setup.architecture.vae is not None:
            encoders = build_encoders(setup.architecture, setup.dtype)
            found += [_row(stock, UNCACHED, n, 2, count_peer(stock, pairs=n, encoders=encoders)) for n in pairs]
    return found


def _row(ready: Ready, step: str, groups: int, candidates: int, count: Count) -> Row:
    setup = ready.setup
    return Row(
        setup.architecture.name,
        setup.resolution,
        ADAPTER.name_of(type(setup.adapter)),
        step,
        setup.checkpointing,
        groups,
        candidates,
        count.flops / 1e12 * 2 / (groups * candidates),
        count.peak_bytes / GIB,
        graph_bytes(ready) / GIB,
        count.launches,
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    head = ["model", "size", "step", "checkpointing", "batch", "TFLOP a pair", "peak GiB", "graph GiB", "launches"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["model"], f"{row['resolution']}²", row["step"], "on" if row["checkpointing"] else "off"]
        cells += [_batch(row["groups"], row["candidates"]), f"{row['teraflops_a_pair']:.2f}", f"{row['peak_gib']:.2f}"]
        cells += [f"{row['graph_gib']:.2f}", f"{row['launches']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _batch(groups: int, candidates: int) -> str:
    kind = "pair" if candidates == 2 else f"list of {candidates}"
    return f"{groups} {kind}" if groups == 1 else f"{groups} {kind}s"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
