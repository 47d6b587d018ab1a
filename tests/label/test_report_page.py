"""The page of a labelling report: its images read back, its warnings, and what is missing or damaged."""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffpref.label.report import write_report
from diffpref.label.sections import percent
from tests.label.report_world import Row, colour, figures_of, groups_of, make_rows, write_run


def test_the_sheet_shows_each_prompts_images_best_first(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    folder, rows, _ = reported
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "http" not in html and "<b>word" not in html and "<i>gone" not in html
    assert "&lt;out&gt; of memory" in html and "row 3: first &amp; only" in html
    found = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))[0, 0].tolist()
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    ]
    lowest = sorted(groups_of(rows), key=lambda group: group[0]["prompt_id"])[:24]
    expected = [list(colour(row)) for group in lowest for row in sorted(group, key=lambda row: row["rank"])]
    assert found == expected


def test_warnings(tmp_path: Path) -> None:
    rows = [row for row in make_rows(20) if row["generator"] == "pix" or row["sample"] == 0]
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        a.update(status="ok", phi=0.0, rank=2, duplicate_of="")
        b.update(status="ok", phi=1.0, rank=1, duplicate_of="")
        a["score.one"], b["score.one"], a["score.two-b"], b["score.two-b"] = 1.0, 2.0, 3.0, 3.0
    html = write_report(write_run(tmp_path / "one", rows, images=False)).read_text(encoding="utf-8")
    assert "pix drew the best image of 100\xa0% of the prompts, with 50\xa0% of the images" in html
    assert "images could not be read from images/" in html
    assert figures_of(tmp_path / "one")["tau_b"]["one"]["two-b"] is None  # the second reward ties every pair
    for row in rows[:10]:
        row.update(status="gen_error", phi=None, rank=None)
    for row in rows[10:]:
        row.update(phi=0.5)
    html = write_report(write_run(tmp_path / "two", rows, images=False)).read_text(encoding="utf-8")
    assert "25\xa0% of the images failed" in html and "100\xa0% of the pairs are tied in phi" in html
    for row in rows:
        row.update(status="safety_blocked", phi=None, rank=None)
        row["score.one"] = row["score.two-b"] = None
    html = write_report(write_run(tmp_path / "three", rows, images=False)).read_text(encoding="utf-8")
    assert "No image has a label" in html and "Contact sheet" not in html
    assert figures_of(tmp_path / "three")["rewards"]["one"]["mean"] is None


def test_a_reward_without_a_say_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(5))
    text = "prompts: p.txt\ngenerators: [{name: pix, function: 'x:y', samples: 2}]\n"
    text += "rewards: [{name: one, reward: emoji_hand}, {name: two-b, reward: emoji_hand, held_out: true}]\n"
    (folder / "label.yaml").write_text(text)
    html = write_report(folder).read_text(encoding="utf-8")
    assert "two-b (held out)" in html and "one (held out)" not in html
    assert figures_of(folder)["held_out"] == ["two-b"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(5), images=False)
    (folder / "labels" / "00000.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match="00000.parquet cannot be read"):
        write_report(folder)
    (folder / "labels" / "00000.parquet").unlink()
    with pytest.raises(ValueError, match="holds no labels: run the stage labels first"):
        write_report(folder)
    (folder / "prompts.parquet").unlink()
    with pytest.raises(ValueError, match="prompts.parquet cannot be read"):
        write_report(folder)


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    """Another folder that fits the pattern is not read."""
    write_run(tmp_path / "run 1", make_rows(9), images=False)
    folder = write_run(tmp_path / "run [1] it's", make_rows(5), images=False)
    write_report(folder)
    assert figures_of(folder)["pictures"]["planned"] == 15


def test_a_shard_that_is_damaged_inside(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(30), images=False)
    path = folder / "labels" / "00000.parquet"
    data = bytearray(path.read_bytes())
    data[4:1500] = bytes(1496)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read .*restore it, or run its stage again"):
        write_report(folder)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0 %"), (0.00004, "< 0.1 %"), (0.1234, "12.3 %"), (0.99999, "> 99.9 %"), (1.0, "100 %")],
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share).replace("\xa0", " ").replace("\u202f", " ") == text
