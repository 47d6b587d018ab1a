"""What a run depends on besides its settings: versions, the git commit, the command, the machine."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch

from diffpref.files.identity import installed

PACKAGES = ("diffpref", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "xformers")


def versions() -> dict[str, str]:
    """The installed versions of the packages that touch the result."""
    return {"python": platform.python_version(), **installed(PACKAGES)}


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that holds the folder, with "+changes" if files differ from it; None outside one."""
    try:
        run = ["git", "-C", str(folder)]
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changes = subprocess.run(
            [*run, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def describe() -> dict[str, object]:
    """All of it, for environment.json."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "git_commit": git_commit(Path(__file__).parent),
        "command": sys.argv,
        "platform": platform.platform(),
        "processors": torch.get_num_threads(),
        "gpus": gpus,
    }


def peak_memory_gib() -> float:
    """The most memory this process has used so far: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
