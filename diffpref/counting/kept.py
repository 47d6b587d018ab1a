"""Counts that were made before: the shipped ones of the built-in architectures, and those of earlier calls.

The shipped file is made by `python -m benchmarks.ship`.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffpref.backbones.adapters import ADAPTERS
from diffpref.counting.steps import Count, Ready, Setup, count_step, graph_bytes, make_ready
from diffpref.engine.modes import MODES
from diffpref.files import atomic
from diffpref.files.cache import user_cache
from diffpref.files.identity import content_key
from diffpref.run.environment import versions
from diffpref.settings.axis import Axis

ADAPTER = Axis("adapter", ADAPTERS)
SHIPPED = Path(__file__).parent / "counts.json"


@dataclass(frozen=True)
class Facts:
    """What a setup costs."""

    parameters: int
    """Of the network, without the adapter."""
    trained: int
    candidate: int
    """Bytes of one candidate's graph."""
    steps: Mapping[str, Count]
    """Of each mode of the package, by its name: of the batch, or where the mode cuts it of one pair with one candidate
    in a graph."""

    def step(self, name: str, groups: int, k: int) -> Count:
        """A step of the given size in a mode, one candidate in a graph where it is cut.

        The pair's count scales: every candidate costs the same FLOPs, and a longer list has more scratches. Launches
        are those of single candidates, of which the reference's are fewer in a batch."""
        mode, count = MODES[name](), self.steps[name]
        if not mode.cuts:
            return count
        more = 4 * self.trained * (mode.scratches(k, 1) - mode.scratches(2, 1))
        candidates = groups * k
        return Count(count.flops * candidates // 2, count.launches * candidates // 2, count.peak_bytes + more)


def facts(setup: Setup, groups: int, k: int) -> Facts:
    """The facts of a setup, counted where nobody did before; a full-size network takes about a minute."""
    return Facts(
        **_kept(setup, "size"),
        candidate=_kept(setup, "graph")["bytes"],
        steps={name: Count(**_kept(setup, name, *counted_size(name, groups, k))) for name in MODES},
    )


def counted_size(name: str, groups: int, k: int) -> tuple[int, int]:
    """Groups and candidates of the step that is counted for a mode: a pair where a batch is cut."""
    return (1, 2) if MODES[name].cuts else (groups, k)


def _kept(setup: Setup, what: str, *size: int) -> dict[str, Any]:
    key = key_of(setup, what, *size)
    found = shipped().get(key)
    if found is not None:
        return found
    file = _folder() / f"{content_key(key, json.dumps(versions(), sort_keys=True))}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        found = count(setup, what, *size)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(file, found)
    except OSError:
        # A home that cannot be written to costs the count of the next call, nothing else.
        pass
    return found


def count(setup: Setup, what: str, *size: int) -> dict[str, Any]:
    """One count of a setup: its "size", the "graph" of a candidate, or a step in a mode of (groups, candidates)."""
    ready = _ready(setup)
    if what == "graph":
        return {"bytes": graph_bytes(ready)}
    if what == "size":
        trained = sum(p.numel() for p in ready.parameters)
        total = sum(p.numel() for p in ready.network.parameters())
        return {"parameters": total - (trained if setup.adapter.added else 0), "trained": trained}
    groups, k = size
    return dataclasses.asdict(count_step(ready, MODES[what](), groups=groups, k=k))


def key_of(setup: Setup, what: str, *size: int) -> str:
    """The name of a count: equal for setups that cost the same."""
    described: dict[str, Any] = dataclasses.asdict(setup)
    # A setting that is off has no part in the name: a new one leaves the names of earlier counts as they are.
    own = {name: value for name, value in setup.adapter.identity().items() if value is not None}
    kind = {"rank": 0, "lora_target_modules": [], **own}
    described |= {"adapter": ADAPTER.name_of(type(setup.adapter)), "targets": kind.pop("lora_target_modules"), **kind}
    # The name and the encoders change nothing.
    described["architecture"] = [setup.architecture.pipeline, dict(setup.architecture.network)]
    described["text_tokens"] = setup.text_tokens or setup.architecture.text_lengths
    return content_key(json.dumps([described, what, *size], sort_keys=True))


_LAST: dict[str, Ready] = {}


def _ready(setup: Setup) -> Ready:
    """The setup's network; the last one stays, because several counts of it are asked for one after another."""
    name = key_of(setup, "")
    if name not in _LAST:
        _LAST.clear()
        _LAST[name] = make_ready(setup)
    return _LAST[name]


@lru_cache(maxsize=1)
def shipped() -> dict[str, Any]:
    """The counts that came with the package."""
    return json.loads(SHIPPED.read_text()) if SHIPPED.is_file() else {}


def _folder() -> Path:
    return user_cache("counts")
