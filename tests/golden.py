"""Records what tiny runs compute, and compares two records byte for byte: a refactoring must change nothing.

    python tests/golden.py record OUT.json [--repo DIR] [--only WORD] [--jobs N]    the runs of the checkout DIR
    python tests/golden.py compare A.json B.json [--ignore PATTERN ...]              prints what differs; exits 1
    python tests/golden.py check BASE NEW [...]       both, for two checkouts, or for a record and a checkout
    python tests/golden.py numbers RECORD             writes tests/golden.json, which tests/test_golden.py reads, from a
                                                      record or a checkout

Equal bytes are promised on one machine and for equal versions of torch; another processor rounds otherwise. A pattern
of --ignore is a regular expression that is searched in `run: file: key`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Before what else the environment offers: an installed checkout has a package `tests` too.
    sys.path.insert(0, str(ROOT))

from tests.golden_runs import Unit, units  # noqa: E402
from tests.golden_world import prepare  # noqa: E402

NUMBERS = ROOT / "tests" / "golden.json"
KEPT = ("loss", "rewards/margins", "grad_norm")
"""Figures of each step that stay in the suite."""
Record = dict[str, dict[str, Any]]


def record(repo: Path, only: str, jobs: int) -> Record:
    """Run name -> what it wrote, for the units with `only` in their name.

    Raises:
        ValueError: no unit has that name, or a command failed; names it and the end of what it said.
    """
    chosen = [unit for unit in units() if only in unit.name]
    if not chosen:
        raise ValueError(f"no run's name holds {only!r}: choose among {', '.join(unit.name for unit in units())}.")
    work = Path(tempfile.mkdtemp(prefix="golden-"))
    try:
        prepare(work, repo)
        _run(work, repo, chosen, jobs)
        return _read(work, repo, chosen)
    finally:
        shutil.rmtree(work)


def _run(work: Path, repo: Path, chosen: Sequence[Unit], jobs: int) -> None:
    """Do the units in `jobs` processes of one thread each."""
    (work / "units").mkdir()
    plain = [{"name": unit.name, "runs": [(run.module, run.arguments) for run in unit.runs]} for unit in chosen]
    (work / "units.json").write_text(json.dumps(plain))
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **threads, **offline, "PYTHONPATH": str(repo.resolve())}
    command = [sys.executable, str(ROOT / "tests" / "golden_drive.py"), str(work)]
    drivers = [subprocess.Popen(command, env=environment, cwd=work) for _ in range(min(jobs, len(chosen)))]
    if any([driver.wait() for driver in drivers]):
        raise ValueError("a driver of the runs died; its message stands above.")


def _read(work: Path, repo: Path, chosen: Sequence[Unit]) -> Record:
    """The record of what the units have printed and written."""
    from tests.golden_read import clean, read_outputs

    hide = {str(work.resolve()): "<work>", str(repo.resolve()): "<repo>"}
    found: Record = {}
    for number, unit in enumerate(chosen):
        logs = work / "units"
        for place, end in enumerate(json.loads((logs / f"{number}.json").read_text())):
            if end:
                said = "".join((logs / f"{number}.{place}.{name}").read_text()[-3000:] for name in ("out", "err"))
                raise ValueError(f"{unit.runs[place].name} ended with {end}:\n{said}")
        printed = [clean((logs / f"{number}.{p}.out").read_text().splitlines(), hide) for p in range(len(unit.runs))]
        found[f"{unit.name} (printed)"] = {run.name: text for run, text in zip(unit.runs, printed, strict=True)}
        found |= {name: read_outputs(work / folder, hide) for name, folder in unit.outputs.items()}
    return found


def compare(first: Record, second: Record, ignore: Sequence[str]) -> list[str]:
    """One line for each value that the records do not share."""
    lines = []
    for run in sorted(first.keys() | second.keys()):
        if run not in first or run not in second:
            lines.append(f"{run}: only in the {'first' if run in first else 'second'} record")
            continue
        one, other = first[run], second[run]
        for key in sorted(one.keys() | other.keys()):
            a, b = (json.dumps(values[key]) if key in values else "nothing" for values in (one, other))
            if a != b:
                lines.append(f"{run}: {key}: {_shown(a, b)}")
    return [line for line in lines if not any(re.search(pattern, line.partition(" | ")[0]) for pattern in ignore)]


def _shown(a: str, b: str) -> str:
    """Both values; of long ones only the part around the first difference."""
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(place - 60, 0) if max(len(a), len(b)) > 200 else 0
    return f"| {a[start : start + 200]} | {b[start : start + 200]}"


def numbers(found: Record) -> dict[str, dict[str, list[float]]]:
    """Of each run, the figures that stay in the suite, step by step, with six digits."""
    kept: dict[str, dict[str, list[float]]] = {}
    for run, values in found.items():
        for log in sorted(
            {key.partition(": ")[0] for key in values if key.partition(": ")[0].endswith("metrics.jsonl")}
        ):
            name = f"{run}/{log}".removesuffix("/metrics.jsonl")
            steps = [step for step in range(1, 10) if f"{log}: step {step}.step" in values]
            kept[name] = {
                figure: [float(f"{values[f'{log}: step {step}.{figure}']:.6g}") for step in steps] for figure in KEPT
            }
    return kept


def _load(path: Path, options: argparse.Namespace) -> Record:
    """A record from its file, or of a checkout, made now."""
    return json.loads(path.read_text()) if path.is_file() else record(path, options.only, options.jobs)


def _report(lines: Sequence[str], runs: int) -> int:
    """1 if there are lines, which are printed, else 0."""
    print(*lines, sep="\n", end="\n" if lines else "")
    print(f"{len(lines)} differences in {runs} runs", file=sys.stderr)
    return 1 if lines else 0


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare", "check", "numbers"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--repo", type=Path, default=ROOT, help="record: the checkout whose code and configs run")
    parser.add_argument("--only", default="", help="units whose name holds this word")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN")
    options = parser.parse_args(arguments)
    wanted = {"record": 1, "compare": 2, "check": 2, "numbers": 1}[options.action]
    if len(options.paths) != wanted:
        parser.error(f"{options.action} takes {wanted} paths, got {len(options.paths)}.")
    start = time.monotonic()
    if options.action == "record":
        found = record(options.repo, options.only, options.jobs)
        options.paths[0].write_text(json.dumps(found, indent=0, sort_keys=True))
        print(f"{len(found)} runs in {time.monotonic() - start:.0f} s: {options.paths[0]}")
        return 0
    if options.action == "numbers":
        _write_numbers(numbers(_load(options.paths[0], options)))
        return 0
    first, second = (_load(path, options) for path in options.paths)
    if options.only:
        first, second = ({run: v for run, v in r.items() if options.only in run} for r in (first, second))
    return _report(compare(first, second, options.ignore), len(first))


def _write_numbers(kept: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """tests/golden.json, one run a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(kept.items())]
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
