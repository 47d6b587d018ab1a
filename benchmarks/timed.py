"""Timed on a CUDA GPU: each mode's step and the published scripts' order, full-size networks with random weights."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.counted import PEER, SUBJECTS
from benchmarks.peers import count_peer, make_stock, peer_step
from diffpref.counting.counters import GIB
from diffpref.counting.steps import BETA, Ready, Setup, count_step, make_ready, our_step
from diffpref.engine.modes import MODES
from diffpref.errors import compare

WARM_UP = 3


def timed(
    models: Sequence[str], sizes: Sequence[int], pairs: Sequence[int], repeats: int
) -> tuple[list[dict[str, Any]], str]:
    """Rows of every step that fits the GPU, and a Markdown table."""
    ceiling = matmul_rate(repeats)
    rows: list[dict[str, Any]] = []
    for name in models:
        subject = SUBJECTS[name]
        for setup in subject.setups(sizes):
            for stock in (False, True) if setup.adapter.added else (False,):
                for checkpointing in (False, True):
                    one = replace(setup, checkpointing=checkpointing)
                    rows += _rows(one, subject.batches(pairs), repeats, ceiling, stock=stock)
    return rows, markdown(rows, ceiling)


def _rows(setup: Setup, pairs: Sequence[int], repeats: int, ceiling: float, *, stock: bool) -> list[dict[str, Any]]:
    make = make_stock if stock else make_ready
    counted, ready = make(setup), make(setup, "cuda")
    found: list[dict[str, Any]] = []
    for n in pairs:
        for mode in [PEER] if stock else MODES:
            row = {"model": setup.architecture.name, "resolution": setup.resolution, "step": mode, "pairs": n}
            row |= {"checkpointing": setup.checkpointing}
            try:
                row |= _measure(ready, mode, n, repeats, stock=stock)
            except torch.cuda.OutOfMemoryError:
                for parameter in ready.parameters:
                    parameter.grad = None
                torch.cuda.empty_cache()
                found.append({**row, "ms_a_pair": None})
                continue
            count = count_peer(counted, pairs=n) if stock else count_step(counted, MODES[mode](), groups=n)
            rate = count.flops / n / row["ms_a_pair"] * 1e3
            found.append({**row, "counted_gib": count.peak_bytes / GIB, "share_of_matmul": rate / ceiling})
    return found


def _measure(ready: Ready, mode: str, pairs: int, repeats: int, *, stock: bool) -> dict[str, Any]:
    """Median milliseconds a pair, GiB above the weights at the peak, and the logit's rms while nothing is learned."""

    def step() -> None:
        # Fresh numbers each time: equal ones would run cooler.
        probe = ready.probe(pairs, 2)
        with ready.autocast() as region:
            if stock:
                with region():
                    peer_step(ready.network, ready.policy, probe, BETA)
            else:
                our_step(ready, region, probe, MODES[mode]())
        for parameter in ready.parameters:
            parameter.grad = None

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = [milliseconds(step) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated() - before
    if ready.setup.adapter.added:
        peak += sum(p.numel() * p.element_size() for p in ready.parameters)
    with torch.no_grad(), ready.autocast() as region, region():
        ratio = compare(ready.policy, ready.reference, ready.probe(pairs, 2)).log_ratio
    logit = BETA * (ratio[:, 0] - ratio[:, 1])
    return {
        "ms_a_pair": statistics.median(times) / pairs,
        "ms_all": times,
        "peak_gib": peak / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "logit_rms": float(logit.square().mean().sqrt()),
        "finite": bool(ratio.isfinite().all()),
    }


def milliseconds(run: Callable[[], object]) -> float:
    """How long the GPU takes, by events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def matmul_rate(repeats: int, size: int = 8192) -> float:
    """FLOP/s of a large bfloat16 product on random numbers, the median of some: what the GPU can do at most."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(WARM_UP):
        torch.mm(a, b)
    return 2 * size**3 / statistics.median(milliseconds(lambda: torch.mm(a, b)) for _ in range(max(repeats, 10))) * 1e3


def markdown(rows: Sequence[dict[str, Any]], ceiling: float) -> str:
    """The rows as a table."""
    head = [
        "model",
        "size",
        "step",
        "checkpointing",
        "pairs",
        "ms a pair",
        "peak GiB",
        "counted GiB",
        "of matmul",
        "logit rms",
    ]
    lines = [f"{torch.cuda.get_device_name()}, matmul {ceiling / 1e12:.0f} TFLOP/s", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [
            row["model"],
            f"{row['resolution']}²",
            row["step"],
            "on" if row["checkpointing"] else "off",
            str(row["pairs"]),
        ]
        if row["ms_a_pair"] is None:
            cells += ["does not fit", "", "", "", ""]
        else:
            cells += [f"{row['ms_a_pair']:.1f}", f"{row['peak_gib']:.2f}", f"{row['counted_gib']:.2f}"]
            cells += [f"{row['share_of_matmul']:.0%}", f"{row['logit_rms']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
