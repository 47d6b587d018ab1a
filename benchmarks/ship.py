"""`python -m benchmarks.ship CONFIG...`: counts what `diffpref doctor` says of these configs, and ships it.

Run it when the training step changes: `python -m benchmarks.ship configs/s*/*.yaml configs/edm/*.yaml`.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffpref.counting.kept import SHIPPED, count, counted_size, key_of
from diffpref.counting.steps import Setup
from diffpref.engine.modes import MODES
from diffpref.files import atomic


def questions(config: Path) -> list[tuple[Setup, str, tuple[int, ...]]]:
    """All counts that the doctor needs for a config."""
    from diffpref.doctor.run import batch_of, setup_of
    from diffpref.training.settings import from_yaml

    settings = from_yaml(config)
    found: list[tuple[Setup, str, tuple[int, ...]]] = []
    for checkpointing in (False, True):
        setup = replace(
            setup_of(settings.model, settings.run, settings.adapter, settings.probe, settings.data.resolution),
            checkpointing=checkpointing,
        )
        groups, k, _ = batch_of(settings.optimization, settings.objective, settings.source)
        found += [(setup, "size", ()), (setup, "graph", ())]
        found += [(setup, name, counted_size(name, groups, k)) for name in MODES]
    return found


def main(configs: list[str]) -> int:
    """Count, and replace the shipped file."""
    table: dict[str, Any] = {}
    asked = [question for config in configs for question in questions(Path(config))]
    # A network is built once for all that is asked of it.
    order = {key_of(setup, ""): -place for place, (setup, *_) in reversed(list(enumerate(asked)))}
    asked.sort(key=lambda question: -order[key_of(question[0], "")])
    for setup, what, size in asked:
        key = key_of(setup, what, *size)
        if key not in table:
            table[key] = count(setup, what, *size)
            print(f"{setup.architecture.name}, {setup.precision}, {what} {size}: {table[key]}", flush=True)
    # At the end: until then the file that is there answers for every config.
    atomic.write_json(SHIPPED, dict(sorted(table.items())))
    return 0


if __name__ == "__main__":
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
