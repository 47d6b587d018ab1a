"""report.html shows what a run directory holds, leaves out what it lacks, and bears half-written files."""

import json
import math
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from diffpref.report.curves import POINTS, read_metrics
from diffpref.training.report import write_report


def record(step: int, **more: object) -> dict[str, object]:
    """A logged step with every key of the loop."""
    found: dict[str, object] = {"step": step, "loss": 0.69, "learning_rate": 1e-4, "grad_norm": 0.5}
    found |= {"rewards/chosen": 0.1, "rewards/rejected": -0.1, "rewards/margins": 0.2, "rewards/accuracies": 0.75}
    for side in ("chosen", "rejected"):
        found |= {f"error/{side}/policy": 0.2, f"error/{side}/reference": 0.2, f"error/{side}/ratio": 1.0}
    found |= {
        "accuracy/t_000_249": 0.5,
        "accuracy/t_750_999": 0.6,
        "margins/p10": -1,
        "margins/p50": 0,
        "margins/p90": 1,
    }
    return found | {"saturated": 0.0, "seconds_per_step": 0.4, "peak_memory_gib": 1.5} | more


def write_metrics(run: Path, *records: dict[str, object], tail: str = "") -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records) + tail, encoding="utf-8")


def html(run: Path) -> str:
    assert write_report(run) == run / "report.html"
    return unescape((run / "report.html").read_text(encoding="utf-8"))


def write_pairs(run: Path, count: int) -> None:
    folder = run / "samples" / "pairs"
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8), "red").save(folder / f"{i:03d}-before.png")
        Image.new("RGB", (8, 8), "blue").save(folder / f"{i:03d}-after.png")
    (folder / "captions.json").write_text(json.dumps([f"a <thing> {i}" for i in range(count)]))


def test_an_empty_run_gives_a_page_without_sections(tmp_path: Path) -> None:
    page = html(tmp_path)
    assert "<h1>" in page and "<h2" not in page and "No alarm" not in page


def test_a_full_run_gives_every_section_and_chart(tmp_path: Path) -> None:
    write_metrics(tmp_path, *(record(step) for step in range(1, 6)))
    write_pairs(tmp_path, 2)
    for step in (0, 5):
        Image.new("RGB", (40, 8)).save(tmp_path / "samples" / f"step-{step:06d}.png")
    (tmp_path / "samples" / "prompts.json").write_text(json.dumps(["a fox", "a boat"]))
    (tmp_path / "config.yaml").write_text("objective: dpo\nbeta: 2000\n")
    (tmp_path / "environment.json").write_text(
        json.dumps({"command": ["diffpref", "train", "a b"], "versions": {"torch": "2.15"}, "git_commit": None})
    )
    (tmp_path / "evaluation.json").write_text(
        json.dumps(
            {
                "table": [["judge", 0.25, 0.75], ["name", "x", "y"]],
                "figures": [["75 %", "wins", "good"]],
                "notes": ["256 prompts."],
            }
        )  # fmt: skip
    )
    page = html(tmp_path)
    for section in ("Before and after", "Evaluation", "Curves", "Samples over time", "How it was made"):
        assert f">{section}</h2>" in page
    assert page.count('<figure class="chart">') == 10
    assert page.index("75 %") < page.index("No alarm in 5 logged steps") < page.index(">Before and after</h2>")
    assert "a <thing> 1" in page and "From left to right: a fox; a boat." in page and ">step 5</h3>" in page
    assert "diffpref train 'a b'" in page and "torch" in page and "beta: 2000" in page and "git_commit" not in page
    assert '<td class="n">0.5</td>' in page and "256 prompts." in page
    assert "t = 750 to 999" in page and "75%" in page and "1.5 GiB" in page


def test_alarms_come_first_and_the_same_alarm_with_other_numbers_comes_once(tmp_path: Path) -> None:
    alarms = [record(step, alarm=f"Collapse: {1 + step / 10:.1f} times the reference.") for step in (3, 4, 5)]
    write_metrics(tmp_path, record(1, loss=math.nan), record(2), *alarms)
    page = html(tmp_path)
    assert "Collapse: 1.3 times the reference (3 times, steps 3 to 5)." in page and "1.4 times" not in page
    assert "loss is not finite (step 1)." in page
    assert "No alarm" not in page


def test_a_broken_run_is_marked(tmp_path: Path) -> None:
    write_metrics(tmp_path, record(1, **{"error/chosen/ratio": 1.3, "rewards/accuracies": 0.25}))
    page = html(tmp_path)
    assert '<div class="bad"><b>1.300' in page and '<div class="bad"><b>25%' in page


def test_a_half_written_last_line_is_no_error_and_a_broken_one_is_counted(tmp_path: Path) -> None:
    write_metrics(tmp_path, record(1), record(2), tail='{"step": 3, "lo')
    assert [item["step"] for item in read_metrics(tmp_path / "metrics.jsonl")[0]] == [1, 2]
    assert "could not be read" not in html(tmp_path)
    write_metrics(tmp_path, record(1), tail='{"step": 2, "lo{"step": 2}\n[1]\n' + json.dumps(record(3)))
    records, unreadable = read_metrics(tmp_path / "metrics.jsonl")
    assert [item["step"] for item in records] == [1, 3] and unreadable == 2
    assert "2 lines of metrics.jsonl could not be read" in html(tmp_path)


def test_a_step_that_a_resumed_run_repeats_counts_once_as_logged_last(tmp_path: Path) -> None:
    write_metrics(tmp_path, record(1), record(2, loss=5.0), record(3, loss=6.0), record(2, loss=1.0))
    records, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert [(item["step"], item["loss"]) for item in records] == [(1, 0.69), (2, 1.0), (3, 6.0)]


def test_long_runs_are_drawn_as_block_means_with_their_range(tmp_path: Path) -> None:
    count = 3 * POINTS
    write_metrics(tmp_path, *({"step": step, "loss": float(step % 3)} for step in range(count)))
    page = html(tmp_path)
    assert "Each point is the mean of 3 logged steps." in page
    line = page.split('<polyline class="c0" points="')[1].split('"')[0].split()
    assert len(line) == POINTS
    (height,) = {float(point.split(",")[1]) for point in line}  # the mean of 0, 1 and 2, everywhere
    band = page.split('<polygon class="c0" points="')[1].split('"')[0].split()
    bottom, top = sorted({float(point.split(",")[1]) for point in band})
    assert height == pytest.approx((bottom + top) / 2, abs=0.1) and top - bottom > 100


def test_only_complete_pairs_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    write_pairs(tmp_path, 26)
    (tmp_path / "samples" / "pairs" / "000-after.png").unlink()
    page = html(tmp_path)
    assert page.count("<img") == 2 * 24 and "1 more pairs are in samples/pairs" in page
    assert "<figcaption>a <thing> 0" not in page and "<figcaption>a <thing> 1<" in page


def test_few_of_many_sample_grids_are_shown_first_and_last_among_them(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in range(0, 300, 10):
        Image.new("RGB", (4000, 4)).save(tmp_path / "samples" / f"step-{step:06d}.png")
    page = html(tmp_path)
    assert page.count("<img") == 8 and ">step 0<" in page and ">step 290<" in page
    assert 'width="1600"' in page and 'width="4000"' not in page


def test_an_invalid_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="evaluation.json is no valid JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
