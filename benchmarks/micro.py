"""Micro-benchmarks on a CUDA GPU: every attention kernel at the networks' shapes, and the error and noising kernels."""

import statistics
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.operators import SIZES, benchmark
from benchmarks.timed import milliseconds
from diffpref.backbones.attention import BACKENDS, KERNELS, why_not

SHAPES = (
    ("SDXL 64²", 4096, 4096, 10),
    ("SDXL 32²", 1024, 1024, 20),
    ("SDXL text", 4096, 77, 10),
    ("SD3", 4429, 4429, 24),
)
"""Name, queries, keys and heads, of 64 channels each."""
ROWS = (2, 8, 64)
REPEATS = 20


def micro() -> tuple[list[dict[str, Any]], str]:
    """Rows and a Markdown table of both."""
    attention = [_attention(name, q, k, heads, backend) for name, q, k, heads in SHAPES for backend in BACKENDS]
    device = torch.device("cuda")
    errors = [
        {"latent": name, **asdict(timing)}
        for name, elements in SIZES.items()
        for rows in ROWS
        for timing in benchmark(device, rows=rows, elements=elements, dtype=torch.bfloat16)
    ]
    lines = ["| attention | kernel | forward ms | forward and backward ms |", "| --- | --- | --- | --- |"]
    for row in attention:
        times = [row["reason"], ""] if row["reason"] else [f"{row['forward_ms']:.3f}", f"{row['both_ms']:.3f}"]
        lines.append(f"| {row['shape']} | {row['backend']} | {' | '.join(times)} |")
    lines += ["", "| operator | latents | ours µs | separate calls µs |", "| --- | --- | --- | --- |"]
    for row in errors:
        size = f"{row['rows']} of {row['latent']}"
        lines.append(f"| {row['operation']} | {size} | {row['ours_us']:.1f} | {row['separate_us']:.1f} |")
    return [*attention, *errors], "\n".join(lines)


def _attention(name: str, queries: int, keys: int, heads: int, backend: Any) -> dict[str, Any]:
    device, dtype = torch.device("cuda"), torch.bfloat16
    reason = why_not(backend, device, dtype, head_dim=64, queries=queries, keys=keys)
    row: dict[str, Any] = {"shape": name, "backend": backend, "reason": reason}
    if reason:
        return row
    q = torch.randn(2, queries, heads, 64, device=device, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, keys, heads, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    into = torch.randn_like(q)

    def forward() -> None:
        with torch.no_grad():
            KERNELS[backend](q, k, v)

    def both() -> None:
        torch.autograd.grad(KERNELS[backend](q, k, v), (q, k, v), into)

    for run in (forward, both) * 2:
        run()
    times = (statistics.median(milliseconds(run) for _ in range(REPEATS)) for run in (forward, both))
    return row | dict(zip(("forward_ms", "both_ms"), times, strict=True))
