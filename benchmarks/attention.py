"""How long every attention kernel takes on a CUDA GPU, at the networks' shapes."""

import statistics
from typing import Any

import torch

from benchmarks.timed import milliseconds
from diffpref.backbones.attention import BACKENDS, KERNELS, why_not

SHAPES = (
    ("SDXL 64²", 4096, 4096, 10),
    ("SDXL 32²", 1024, 1024, 20),
    ("SDXL text", 4096, 77, 10),
    ("SD3", 4429, 4429, 24),
)
"""Name, queries, keys and heads, of 64 channels each."""
REPEATS = 20


def timed() -> tuple[list[dict[str, Any]], str]:
    """Rows and a Markdown table."""
    rows = [_attention(name, q, k, heads, backend) for name, q, k, heads in SHAPES for backend in BACKENDS]
    lines = ["| attention | kernel | forward ms | forward and backward ms |", "| --- | --- | --- | --- |"]
    for row in rows:
        times = [row["reason"], ""] if row["reason"] else [f"{row['forward_ms']:.3f}", f"{row['both_ms']:.3f}"]
        lines.append(f"| {row['shape']} | {row['backend']} | {' | '.join(times)} |")
    return rows, "\n".join(lines)


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
