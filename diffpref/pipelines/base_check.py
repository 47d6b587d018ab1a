"""Has the pipeline the base model that a run was trained over?"""

from pathlib import Path
from typing import Any

from diffpref.backbones.identity import has_values
from diffpref.files.hub import cached_name
from diffpref.pipelines.results import Result


def check_base(pipe: Any, component: str, result: Result) -> None:
    """Raise ValueError where the pipeline's network is not the one that the run started from.

    The run has kept some of its base's values; they decide, whatever the base is called here. Where there are none, the
    names do. Weights that came without a run's settings say nothing of their base.
    """
    if not result.settings:
        return
    network = getattr(pipe, component)
    wanted = str(result.settings.get("pretrained_model_name_or_path") or "")
    over = result.settings.get("network_weights")
    here = _name(network, component) or f"a {type(pipe).__name__} without a name"
    values = result.base_values()
    if values is not None and network.dtype.is_floating_point:
        same = has_values(network, values)
    else:
        same = over is None and (wanted == here or Path(wanted).resolve() == Path(here).resolve())
    if not same:
        trained = f"{wanted} with the network of {over}" if over else wanted
        first = f"load(pipe, {str(over)!r}) first, on {wanted}" if over else f"load the pipeline of {wanted}"
        raise ValueError(
            f"{result.run} was trained over {trained}, and the pipeline has other weights ({here}): {first}, or pass "
            "same_base=False to use it on another base."
        )


def _name(network: Any, component: str) -> str:
    """What the pipeline's network was loaded from: a pipeline's folder, or a name on the hub."""
    place = Path(str(network.config.get("_name_or_path") or ""))
    place = place.parent if place.name == component else place
    return cached_name(place) or str(place).removeprefix(".")
