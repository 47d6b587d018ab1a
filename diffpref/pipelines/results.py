"""Where the weights of a run are: in its folder, in a folder or file that somebody made of it, or on the hub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffpref.backbones.adapters.lora import LORA_FILE
from diffpref.backbones.checkpoint import WEIGHTS
from diffpref.backbones.identity import BASE_FILE
from diffpref.files.hub import may_be_hub_name, stay_local_if_unreachable
from diffpref.run.done import is_done
from diffpref.settings.typed import read_yaml


@dataclass(frozen=True)
class Result:
    """A run's weights: a LoRA's file or a network's folder, one of them."""

    run: Path
    """The folder or file that was named, or the hub's copy here."""
    lora: Path | None
    network: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's flat keys; empty where the weights came without."""

    def base_values(self) -> Mapping[str, Any] | None:
        """Some values of the bare base model's network, where the run has kept them.

        Base adapters were merged before they were taken: such a run's are none of the bare base."""
        kept = self.run / BASE_FILE
        if self.settings.get("base_adapters") or not kept.is_file():
            return None
        return json.loads(kept.read_text(encoding="utf-8"))


def find_result(run_or_hub: Path | str, *components: str) -> Result:
    """The weights of a run's folder, of a folder or file of weights, or of a name on the hub, which is downloaded.

    Args:
        components: the pipeline's folder of the network that was trained; several where the pipeline is not known.

    Raises:
        ValueError: nothing there, nothing finished, or no weights of such a network.
    """
    run = Path(run_or_hub).expanduser()
    if run.is_file():
        return Result(run, run, None)
    here = run.is_dir()
    run = run if here else _download(str(run_or_hub), components)
    settings = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    # What goes up to the hub has no marker.
    place = _finished(run, components) if settings and here else run
    lora, network = _weights(place, components)
    if lora is None and network is None:
        either = " or ".join(components)
        raise ValueError(
            f"{run_or_hub} has no {LORA_FILE} and no {either}/{WEIGHTS}: name the output directory of a finished "
            f"run of a pipeline with a {either}."
        )
    return Result(run, lora, network, settings)


def _weights(folder: Path, components: Sequence[str]) -> tuple[Path | None, Path | None]:
    """A LoRA's file, else a network's folder."""
    if (folder / LORA_FILE).is_file():
        return folder / LORA_FILE, None
    for place in (*(folder / component for component in components), folder):
        if (place / "config.json").is_file():
            return None, place
    files = sorted(folder.glob("*.safetensors"))
    return (files[0], None) if len(files) == 1 else (None, None)


def _finished(run: Path, components: Sequence[str]) -> Path:
    """The folder with a run's result: the run itself, or of a run in rounds what its source calls its result."""
    if is_done(run) and any(_weights(run, components)):
        return run
    from diffpref.training.settings import from_yaml

    return from_yaml(run / "config.yaml").source.result(run)


def _download(name: str, components: Sequence[str]) -> Path:
    """The hub's copy of what `load` needs."""
    if not may_be_hub_name(name):
        raise ValueError(f"{name}: no such folder or file, and no name on the hub (OWNER/NAME). Check the path.")
    stay_local_if_unreachable()
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "config.yaml", BASE_FILE, "config.json", *(f"{each}/*" for each in components)]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"{name}: no such folder, and it could not be read from the hub. Check the name, the network, and "
            f"`hf auth login` for private models. ({reason:.200})"
        ) from None
