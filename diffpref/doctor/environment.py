"""What this machine has: versions, devices, attention kernels that really run, optional packages, disk space."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import torch

from diffpref.backbones.attention import attention_report
from diffpref.engine.memory import GIB
from diffpref.run.environment import versions

OPTIONAL = {
    "xformers": "attention: xformers",
    "bitsandbytes": "optimizer: adamw_8bit",
    "ray": "labelling on a cluster",
    "triton": "the error kernel on CUDA; without it plain torch",
}
"""Packages that a run may do without, and what they are for."""


def report(output_dir: Path) -> list[str]:
    """Lines for people: what there is, and what is missing and why."""
    lines = [", ".join(f"{name} {version}" for name, version in versions().items())]
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines.append(f"{platform.platform()}, {processors} processors")
    lines += gpus()
    lines += attention()
    for package, use in OPTIONAL.items():
        found = importlib.util.find_spec(package) is not None
        state = importlib.metadata.version(package) if found else "missing"
        lines.append(f"{package}: {state} ({use})")
    folder = next(parent for parent in (output_dir, *output_dir.absolute().parents) if parent.exists())
    lines.append(f"disk of {output_dir}: {shutil.disk_usage(folder).free / GIB:.1f} GiB free")
    return lines


def gpus() -> list[str]:
    """One line for each GPU, or one that says why there is none."""
    if torch.cuda.is_available():
        found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        return [f"GPU: {gpu.name}, {gpu.total_memory / GIB:.1f} GiB, sm{gpu.major}{gpu.minor}" for gpu in found]
    built = torch.version.cuda or torch.version.hip
    why = (
        f"torch is built for CUDA {built}, and no driver or GPU answers" if built else "this torch is built for the CPU"
    )
    return [f"GPU: none ({why})"]


def attention() -> list[str]:
    """Each attention backend: tried on the device, forward and backward."""
    tried = attention_report()
    runs = [found.backend for found in tried if found.works]
    return [f"attention that runs: {', '.join(runs)}"] + [
        f"  {found.backend}: {found.reason}" for found in tried if not found.works
    ]


def gpu_gib() -> float | None:
    """Memory of the smallest GPU here, in GiB; None without one."""
    if not torch.cuda.is_available():
        return None
    count = torch.cuda.device_count()
    return min(torch.cuda.get_device_properties(index).total_memory for index in range(count)) / GIB
