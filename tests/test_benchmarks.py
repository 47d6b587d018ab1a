"""The benchmarks: the counted table, those of the CPU on small real models, and the answer without a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import cpu, peer
from benchmarks.command import KINDS, main
from benchmarks.counted import Row, markdown, rows_of
from diffpref.backbones.adapters import LoRA
from diffpref.counting.architectures import SDXL, Architecture
from diffpref.counting.counters import GIB
from diffpref.counting.steps import Setup, count_step, make_ready
from diffpref.doctor.architecture import read_architecture
from diffpref.engine import reference
from diffpref.engine.modes import MODES, Deferred, Joint, TwoPass
from diffpref.sources.dataset import Dataset
from tests import small_sdxl


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(small_sdxl.save_pipeline(tmp_path_factory.mktemp("small")), "small")


@pytest.mark.slow
def test_the_modes_beside_the_peer(small: Architecture) -> None:
    setup = Setup(small, 256, LoRA(rank=4), precision="no")
    found = rows_of(setup, [1, 3], [5])
    rows = {(row.step, row.groups): row for row in found if row.candidates == 2}
    assert set(rows) == {(step, n) for step in (*MODES, "peer: peft, joint") for n in (1, 3)}
    long = {row.step: row for row in found if row.candidates == 5}
    assert set(long) == set(MODES) and long["joint"].teraflops_a_pair == pytest.approx(
        rows["joint", 1].teraflops_a_pair
    )
    assert long["two-pass"].peak_gib < long["deferred"].peak_gib < long["joint"].peak_gib
    joint, deferred, two_pass = (rows[mode, 3] for mode in MODES)
    assert deferred.teraflops_a_pair == pytest.approx(joint.teraflops_a_pair, rel=1e-6)
    assert two_pass.teraflops_a_pair > 1.2 * joint.teraflops_a_pair
    # Joint holds every candidate's graph; the others one, whatever the number of pairs.
    assert joint.peak_gib > 6 * joint.graph_gib > 3 * deferred.peak_gib
    assert deferred.peak_gib == pytest.approx(rows["deferred", 1].peak_gib, rel=0.05)
    theirs = rows["peer: peft, joint", 1]
    assert theirs.launches > rows["joint", 1].launches and theirs.peak_gib > rows["joint", 1].peak_gib


@pytest.mark.slow
def test_the_issue_s_numbers() -> None:
    """SDXL at 1024 pixels, LoRA of rank 64 in bfloat16, without checkpointing."""
    ready = make_ready(Setup(SDXL, 1024))
    joint, deferred = (count_step(ready, mode, groups=4) for mode in (Joint(), Deferred()))
    assert deferred.peak_bytes <= 6.5 * GIB and deferred.flops <= 1.02 * joint.flops
    assert count_step(ready, Joint()).launches <= 9000
    assert count_step(ready, TwoPass(), k=8).peak_bytes <= 6.5 * GIB


def test_the_table_shows_every_figure() -> None:
    row = Row("SDXL", 512, "lora", "deferred", True, 4, 2, 9.876, 5.432, 1.234, 12345)
    text = markdown([row.__dict__, {**row.__dict__, "groups": 1, "candidates": 8}])
    assert text.splitlines()[-2] == "| SDXL | 512² | deferred | on | 4 pairs | 9.88 | 5.43 | 1.23 | 12,345 |"
    assert "| 1 list of 8 |" in text


@pytest.mark.slow
def test_memory_of_real_processes_on_a_small_network(small: Architecture) -> None:
    """The path of `bench cpu` itself, on a network of milliseconds."""
    found = [cpu.growth(step, replace(small, text_lengths=(8, 8))) for step in ("deferred", "joint")]
    assert 0 < found[0] < found[1] < 2000


@pytest.mark.slow
def test_a_quarter_of_the_peer_s_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    assert main(["cpu", "--repeats", "1", "--output", str(file)]) == 0
    shares = {row["step"]: row["share"] for row in json.loads(file.read_text())["rows"]}
    assert min(shares["deferred"], shares["two-pass"]) <= 0.25


@pytest.mark.slow
def test_the_race_runs_both_steps() -> None:
    rows, text = peer.race(1)
    assert [row["step"] for row in rows] == ["diffusers script", "ours", "ours, reference stored"]
    assert all(len(row["ratios"]) == 1 and row["median"] > 0 for row in rows) and "| ours |" in text


def test_the_stored_reference_runs_in_the_first_epoch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ROWS", 2)
    monkeypatch.setattr(peer, "PAIRS", 1)
    config, forwards = peer.settings(tmp_path, stored=1), []
    turn, predict = peer.our_turn(config, Dataset().read(config.data, config.objective)), reference.predict
    monkeypatch.setattr(reference, "predict", lambda *given: [forwards.append(1), predict(*given)][1])
    for _ in range(5):
        turn()
    assert len(forwards) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
@pytest.mark.parametrize("kind", ["timed", "micro"])
def test_without_a_gpu_it_says_so(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind]) == 0
    assert f"benchmarks {kind} needs a CUDA GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fast"], "fast"),
        (["counted", "--models", "flux"], "flux"),
        (["counted", "--sizes", "big"], "big"),
        (["timed", "--size", "3"], "--size"),
        (["cpu", "--output"], "--output"),
        (["counted", "--checkpointing", "maybe"], "maybe"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["counted", "--sizes", "512", "0"], ["peer", "--repeats", "0"]])
def test_numbers_are_above_0(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{arguments[1][2:]} must be 1 or above, got"):
        main(arguments)


def test_help_names_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and all(name in shown for name in KINDS)
