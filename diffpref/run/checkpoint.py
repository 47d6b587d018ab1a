"""checkpoint-N folders: written whole or not at all, read back exactly, refused where they belong to another run.

All randomness of a run follows from (seed, position in the data), so weights, averages, optimizer, schedule, the step
number and the metrics that are not yet written are the whole state.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.files import atomic

WEIGHTS = "weights.safetensors"


@runtime_checkable
class Adapter(Protocol):
    """What knows which of a network's tensors are trained."""

    def state(self, network: torch.nn.Module) -> dict[str, Tensor]: ...

    def load(self, network: torch.nn.Module, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Average(Protocol):
    """An average of the trained weights over the steps, such as diffusers' EMAModel."""

    shadow_params: list[Tensor]

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    def to(self, device: torch.device) -> None: ...


@dataclass(frozen=True)
class State:
    """The moving parts of a run. `parts` have state_dict and load_state_dict: optimizer, schedule, gradient scaler."""

    network: torch.nn.Module
    adapter: Adapter
    parts: Mapping[str, Any]
    ema: Average | None


def save_checkpoint(
    folder: Path,
    step: int,
    state: State,
    pending: Mapping[str, Any],
    identity: Mapping[str, object],
    limit: int | None,
) -> Path:
    """Write folder/checkpoint-{step}; then delete the oldest ones beyond the limit.

    Args:
        pending: tensors and numbers that the metrics after this step depend on.
        limit: how many checkpoints to keep, 1 or above; None keeps all.
    """
    path = folder / f"checkpoint-{step}"
    with atomic.new_folder(path) as new:
        tensors = {name: tensor.contiguous() for name, tensor in state.adapter.state(state.network).items()}
        save_file(tensors, new / WEIGHTS)
        parts = {name: part.state_dict() for name, part in state.parts.items()}
        ema = state.ema.state_dict() if state.ema else None
        torch.save({"step": step, "parts": parts, "ema": ema, "pending": dict(pending)}, new / "trainer_state.pt")
        atomic.write_json(new / "run.json", dict(identity))
    if limit is not None:
        for old in checkpoints(folder)[:-limit]:
            shutil.rmtree(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = [
        (int(m[1]), path) for path in folder.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names; None where it says `latest` and there is none yet.

    Raises:
        ValueError: a named checkpoint that does not exist, or lies in another folder.
    """
    existing = checkpoints(folder)
    if name == "latest":
        return existing[-1] if existing else None
    path = folder / Path(name).name
    if Path(name).name != name and Path(name).resolve() != path.resolve():
        raise ValueError(
            f"resume_from_checkpoint: {name} lies outside of output_dir {folder}: a run goes on in its own folder, "
            f"--output_dir {Path(name).parent} --resume_from_checkpoint {Path(name).name}."
        )
    if path not in existing:
        names = ", ".join(p.name for p in existing) or "none"
        raise ValueError(f"{path}: no such checkpoint. In {folder} there are: {names}.")
    return path


def found_to_continue(folder: Path, name: str | None, path: Path | None, *, last: int) -> str | None:
    """What a run says about where it begins, if it was asked to go on.

    Args:
        name: what `--resume_from_checkpoint` says; None for a run from the start.
        path: the checkpoint that it stands for, if there is one.
        last: the run's last step.

    Raises:
        ValueError: the checkpoint lies beyond the last step.
    """
    if name is None:
        return None
    if path is None:
        return f"resume: no checkpoint in {folder}, so this run begins at step 0"
    step = int(path.name.rpartition("-")[2])
    if step > last:
        raise ValueError(
            f"{path} lies beyond the last step: set max_train_steps above {step}, got {last}, or name an earlier "
            "checkpoint."
        )
    left = f"going on from step {step} of {last}" if step < last else f"all {last} steps are done, its result follows"
    return f"resume: found {path}, {left}"


def check_identity(path: Path, identity: Mapping[str, object]) -> None:
    """Raise ValueError where the checkpoint was made by another run: another method, base, data, batch or seed."""
    saved = json.loads((path / "run.json").read_text())
    now = json.loads(json.dumps(dict(identity)))
    # A key that is newer than the checkpoint was off when it was made.
    different = [key for key in now if saved.get(key) != now[key] and (key in saved or now[key])]
    if different:
        lines = "; ".join(f"{key} was {saved.get(key)!r}, is {now[key]!r}" for key in different)
        raise ValueError(f"{path} belongs to another run: {lines}. Use those settings, or another --output_dir.")


def load_checkpoint(path: Path, state: State) -> tuple[int, dict[str, Any]]:
    """Restore everything, and return the step to go on from and what was pending then.

    Raises:
        ValueError: a damaged checkpoint; names it.
    """
    try:
        tensors = load_file(path / WEIGHTS)
        saved = torch.load(path / "trainer_state.pt", map_location="cpu", weights_only=True)
    except Exception as problem:
        raise ValueError(f"{path} cannot be read ({problem}). Resume from an earlier checkpoint.") from problem
    state.adapter.load(state.network, tensors)
    for name, part in state.parts.items():
        part.load_state_dict(saved["parts"][name])
    if state.ema is not None:
        device = state.ema.shadow_params[0].device
        state.ema.load_state_dict(saved["ema"])
        state.ema.to(device)
    return int(saved["step"]), saved["pending"]
