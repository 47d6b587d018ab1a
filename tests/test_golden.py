"""The figures of tiny runs are what they were: tests/golden.json, written by `python tests/golden.py numbers`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from diffpref.training.command import main
from tests.golden import NUMBERS, ROOT, compare, numbers, record
from tests.golden_read import flat, read_outputs
from tests.golden_runs import units
from tests.golden_world import prepare

EXPECTED: Mapping[str, Mapping[str, Sequence[float]]] = json.loads(NUMBERS.read_text())
TOLERANCES = {"loss": (1e-3, 1e-4), "rewards/margins": (5e-3, 1e-3), "grad_norm": (5e-3, 1e-6)}
"""Relative and absolute. Another processor or another number of threads sums in another order: 1e-7 of an error, of
which beta makes up to 1e-4 of a margin, and which Adam carries on where a gradient is nearly 0. Our three modes sum in
three orders, and differ by 1e-4 on one machine; a wrong sign or weight shows in the first digits."""
FEW = ("tiny-sdxl/dpo/deferred", "tiny-sd3/rankdpo/two-pass", "tiny-edm/d3po/joint")


def check(found: Mapping[str, Mapping[str, Sequence[float]]], run: str) -> None:
    for figure, values in EXPECTED[run].items():
        relative, absolute = TOLERANCES[figure]
        assert found[run][figure] == pytest.approx(values, rel=relative, abs=absolute), f"{run}: {figure}"


@pytest.mark.parametrize("name", FEW)
def test_a_tiny_run_has_the_figures_that_it_had(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "work", ROOT)
    monkeypatch.chdir(tmp_path / "work")
    run = next(run for unit in units() for run in unit.runs if run.name == name)
    assert main(list(run.arguments)) == 0
    found = numbers({name: read_outputs(Path("runs") / name, {})})
    assert found
    for part in found:
        check(found, part)


@pytest.mark.slow
def test_every_tiny_run_has_the_figures_that_it_had() -> None:
    found = numbers(record(ROOT, "", os.cpu_count() or 1))
    assert found.keys() == EXPECTED.keys()
    for run in EXPECTED:
        check(found, run)


def test_a_difference_is_named_and_can_be_ignored() -> None:
    first = {"run": {"a.json: x": 1.0, "files": ["a", "b"]}, "other": {}}
    second = {"run": {"a.json: x": 1.0000001, "files": ["a"]}}
    lines = compare(first, second, [])
    assert [line.partition(" | ")[0] for line in lines] == [
        "other: only in the first record",
        "run: a.json: x:",
        "run: files:",
    ]
    assert "| 1.0 | 1.0000001" in lines[1]
    assert compare(first, second, ["^other", "files:$", r"a\.json: x"]) == []
    assert compare(first, first, []) == []


def test_clocks_are_left_out_and_nested_values_named() -> None:
    value = {"seconds": 1.5, "a": {"b": [1, 2], "c": [{"seconds_per_step": 3}, {"d": None}]}}
    assert dict(flat(value)) == {"a.b": [1, 2], "a.c.1.d": None}
