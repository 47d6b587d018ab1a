"""The doctor's findings as text for people and as a mapping for JSON."""

import dataclasses
from typing import Any

from diffpref.doctor.needs import Asked, Needs, largest_graph, plan_for
from diffpref.engine.memory import GIB
from diffpref.engine.modes import Auto

SIZES = (8, 12, 16, 24, 40, 80, 141)
"""GiB of common GPUs, shown where none is given and none is here."""
WHAT = {
    "weights": "weights of the network",
    "adapter": "LoRA, float32",
    "reference": "reference's own weights",
    "gradients": "gradients, float32",
    "optimizer": "optimizer states",
    "ema": "average of the weights",
}


def text(needs: Needs, asked: Asked, gpu: float | None) -> str:
    """What the run needs, and the mode that fits a GPU of `gpu` GiB."""
    count = f"{needs.parameters / 1e6:,.1f} M parameters, {needs.trained / 1e6:,.1f} M trained"
    lines = [
        f"{needs.method} on {needs.model}, {needs.resolution} pixels: {count}",
        f"batch: {needs.groups} groups of {needs.candidates} pictures, accumulated {needs.accumulation} times",
        "",
        "GiB that are held whatever the mode:",
    ]
    lines += [
        f"  {label:<26}{getattr(needs, name) / GIB:>9.3f}" for name, label in WHAT.items() if getattr(needs, name)
    ]
    lines += [f"  {'together':<26}{needs.resident / GIB:>9.3f}", "", _modes(needs)]
    if needs.inversion:
        lines.append(needs.inversion)
    lines += ["", *_fits(needs, asked, gpu)]
    return "\n".join(lines)


def _modes(needs: Needs) -> str:
    rows = [f"{'mode':<11}{'checkpointing':<15}{'graphs GiB':>11}{'total GiB':>11}{'TFLOP/group':>13}{'launches':>10}"]
    for mode in needs.modes:
        total = (needs.resident + mode.bytes) / GIB
        rows.append(
            f"{mode.name:<11}{'on' if mode.checkpointing else 'off':<15}{mode.bytes / GIB:>11.3f}{total:>11.3f}"
            f"{mode.flops / 1e12:>13.3f}{mode.launches:>10,}"
        )
    return "\n".join([*rows, "Modes that cut a batch: with one picture in a graph; launches are a batch's."])


def _fits(needs: Needs, asked: Asked, gpu: float | None) -> list[str]:
    if gpu is None:
        lines = ["No GPU is here and no --gpu_memory_gib is given. What training would choose on one of"]
        return lines + [f"  {size:>4} GiB: {_choice(needs, asked, size)}" for size in SIZES]
    return [f"On a GPU of {gpu:.1f} GiB: {_choice(needs, asked, gpu)}", *_graphs(needs, asked, gpu)]


def _choice(needs: Needs, asked: Asked, gpu: float) -> str:
    try:
        plan = plan_for(needs, gpu, asked)
    except ValueError as problem:
        return f"does not fit. {problem}"
    if plan.budget == 0:
        return f"does not fit: {needs.resident / GIB:.2f} GiB are held whatever the mode"
    return plan.line()


def _graphs(needs: Needs, asked: Asked, gpu: float) -> list[str]:
    budget = plan_for(needs, gpu, dataclasses.replace(asked, mode=Auto())).budget
    return [
        f"  largest micro-batch {'with' if on else 'without'} checkpointing: "
        f"{largest_graph(needs, budget, checkpointing=on)} pictures"
        for on in (False, True)
    ]


def mapping(needs: Needs, asked: Asked, gpu: float | None) -> dict[str, Any]:
    """The same for JSON; sizes in bytes."""
    found = dataclasses.asdict(needs)
    found.pop("work")
    found["resident"] = needs.resident
    if gpu is not None:
        found["gpu_memory_gib"] = gpu
        found["choice"] = _choice(needs, asked, gpu)
    return found
