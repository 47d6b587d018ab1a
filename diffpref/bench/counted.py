"""Counted on meta tensors: what a step costs in each mode, beside the published scripts' order with stock parts."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from diffpref.counting.architectures import EDM, SD3, SDXL, Architecture
from diffpref.counting.counters import GIB
from diffpref.counting.steps import MODES, Count, Ready, Setup, count_peer, count_step, graph_bytes, make_ready

ARCHITECTURES = {"sdxl": SDXL, "sd3": SD3, "edm": EDM}
EDM_PAIRS = 64


@dataclass(frozen=True)
class Row:
    """A step of some pairs; bytes are above the weights of the network and of the reference."""

    model: str
    resolution: int
    adapter: str
    step: str
    """joint, deferred, two-pass, or the peer's."""
    checkpointing: bool
    pairs: int
    teraflops_a_pair: float
    peak_gib: float
    graph_gib: float
    """What one candidate's graph holds between forward and backward."""
    launches: int


def counted(
    models: Sequence[str], sizes: Sequence[int], pairs: Sequence[int], say: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """All rows: LoRA of rank 64 in bfloat16, and EDM as a whole in float32."""
    rows: list[Row] = []
    for name in models:
        for setup in setups(ARCHITECTURES[name], sizes):
            for checkpointing in (False, True):
                rows += rows_of(replace(setup, checkpointing=checkpointing), pairs if name != "edm" else [EDM_PAIRS])
                (say or _say)(f"counted {rows[-1].model} {rows[-1].resolution}, {len(rows)} rows")
    return [asdict(row) for row in rows]


def setups(architecture: Architecture, sizes: Sequence[int]) -> list[Setup]:
    """A network as it is fine-tuned, at each size; EDM has one size."""
    if architecture is EDM:
        return [Setup(EDM, 32, "full", 0, precision="no")]
    return [Setup(architecture, size) for size in sizes]


def rows_of(setup: Setup, pairs: Sequence[int]) -> list[Row]:
    """Our modes for each number of pairs, and the peers' order where there is LoRA."""
    ready = make_ready(setup)
    found = [_row(ready, mode, n, count_step(ready, mode, groups=n)) for n in pairs for mode in MODES]
    if setup.adapter == "lora":
        stock = make_ready(replace(setup, stock=True))
        found += [_row(stock, "peer: peft, joint", n, count_peer(stock, pairs=n)) for n in pairs]
    return found


def _row(ready: Ready, step: str, pairs: int, count: Count) -> Row:
    setup = ready.setup
    return Row(
        setup.architecture.name,
        setup.resolution,
        setup.adapter,
        step,
        setup.checkpointing,
        pairs,
        count.flops / 1e12 / pairs,
        count.peak_bytes / GIB,
        graph_bytes(ready) / GIB,
        count.launches,
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    head = ["model", "size", "step", "checkpointing", "pairs", "TFLOP a pair", "peak GiB", "graph GiB", "launches"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["model"], f"{row['resolution']}²", row["step"], "on" if row["checkpointing"] else "off"]
        cells += [str(row["pairs"]), f"{row['teraflops_a_pair']:.2f}", f"{row['peak_gib']:.2f}"]
        cells += [f"{row['graph_gib']:.2f}", f"{row['launches']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
