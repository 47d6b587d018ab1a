"""`diffpref data preview|validate|convert`: files written, round trips, exit status and messages."""

import base64
import io
import re
from pathlib import Path

import datasets
import pytest
from PIL import Image

from diffpref.data import convert
from diffpref.data.command import main
from diffpref.data.convert import write_parquet
from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.data.preview import write_preview


@pytest.fixture
def ranked(json_file, tmp_path: Path, image_bytes) -> Path:
    """Two lists of three and one pair, by path."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(image_bytes(40 * i))
    names = ["0.png", "1.png", "2.png"]
    rows = [
        {"prompt": "first", "images": names, "scores": [0.5, 2.0, 0.5], "models": ["x", "y", "z"]},
        {"prompt": "second", "images": names, "scores": [3.0, 2.0, 1.0], "models": ["x", "y", "z"]},
        {"prompt": "third & <last>", "images": names[:2], "scores": [1.0, 4.0], "models": []},
    ]
    return json_file(rows, "lists.jsonl")


def content(preferences) -> list[tuple]:
    return [
        (row.prompt, row.scores, row.models, [decode(p).getpixel((0, 0))[0] for p in row.images]) for row in preferences
    ]


def test_lists_survive_the_round_trip(ranked: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", str(ranked), "--output", str(tmp_path / "out.parquet")]) == 0
    assert "(3 rows)" in capsys.readouterr().out
    back = read_preferences(tmp_path / "out.parquet")
    assert content(back) == content(read_preferences(ranked)) and back.schema == "scored lists"
    assert back[0].images[0] == (tmp_path / "0.png").read_bytes()


def test_pairs_are_written_best_first_and_datasets_shows_them(json_file, tmp_path: Path, image_bytes) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(image_bytes(40 * i))
    row = {"prompt": "p", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]}
    written = write_parquet(read_preferences(json_file([row])), tmp_path / "out.parquet")
    assert len(written) == 1
    shown = datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "out.parquet")}, split="train")
    assert isinstance(shown.features["chosen"], datasets.Image) and isinstance(shown[0]["chosen"], Image.Image)
    assert shown[0]["chosen"].getpixel((0, 0)) == (40, 40, 40)
    assert content(read_preferences(tmp_path / "out.parquet")) == [("p", (1.0, 0.0), (), [40, 0])]


def test_pickapic_columns_hold_every_pair(ranked: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert main(["convert", str(ranked), "--output", str(output), "--to", "pickapic"]) == 0
    shown = datasets.load_dataset("parquet", data_files={"train": str(output)}, split="train")
    assert set(shown.column_names) >= {"caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "are_different"}
    # The tie in the first list leaves 2 + 3 + 1 pairs.
    assert shown["label_0"][:] == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0] and isinstance(shown[0]["jpg_0"], bytes)
    back = read_preferences(output)
    assert back.schema == "Pick-a-Pic" and content(back)[1] == ("first", (1.0, 0.0), ("y", "z"), [40, 80])
    assert content(back)[5] == ("third & <last>", (0.0, 1.0), (), [0, 40])


def test_rows_are_written_in_batches(ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.setattr(convert, "_ROWS", 2)
    write_parquet(read_preferences(ranked), tmp_path / "out.parquet")
    assert pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 2


def test_a_failed_conversion_leaves_the_old_file(ranked: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("old")
    (tmp_path / "2.png").unlink()
    assert main(["convert", str(ranked), "--output", str(output)]) == 1
    shown = capsys.readouterr().err
    assert re.search(r"^diffpref data: lists.jsonl row 0: .*2.png cannot be read .*: restore the file", shown)
    assert output.read_text() == "old" and not list(tmp_path.glob(".out*"))
    assert main(["convert", str(ranked), "--output", str(tmp_path / "no" / "out.parquet")]) == 1
    assert "its folder does not exist; create it first" in capsys.readouterr().err


def test_preview_is_one_page_with_the_best_first(ranked: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "preview.html"
    assert main(["preview", str(ranked), "--output", str(page)]) == 0
    assert "read: 3 rows, 3 kept" in capsys.readouterr().out
    html = page.read_text()
    assert "third &amp; &lt;last&gt;" in html and "lists.jsonl row 1" in html and "read: 3 rows, 3 kept" in html
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)]
    levels = [p.convert("RGB").getpixel((0, 0))[0] for p in images]
    assert levels == [40, 0, 80, 0, 40, 80, 40, 0]
    assert "2, y, 8x6" in html and "http" not in re.sub(r"base64,[^\"]*", "", html).replace("http://www.w3.org", "")


def test_preview_draws_the_rows_by_seed(ranked: Path, tmp_path: Path) -> None:
    rows = read_preferences(ranked)
    shown = []
    for seed in (0, 0, 1, 2, 3):
        write_preview(rows, tmp_path / "p.html", count=1, seed=seed)
        shown.append(re.findall("row [0-9]", (tmp_path / "p.html").read_text()))
    assert shown[0] == shown[1] and len({tuple(s) for s in shown}) > 1 and all(len(set(s)) == 1 for s in shown)
    with pytest.raises(ValueError, match="count must be 1 or above"):
        write_preview(rows, tmp_path / "p.html", count=0)
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="lists.jsonl row 0: image 0: .*0.png is empty"):
        write_preview(rows, tmp_path / "p.html")


def test_validate_decodes_everything(ranked: Path, tmp_path: Path, image_bytes, capsys) -> None:
    assert main(["validate", str(ranked)]) == 0
    assert "images decoded: 3 rows, 3 kept" in capsys.readouterr().out
    (tmp_path / "2.png").write_bytes(image_bytes(80)[:-30])
    assert main(["validate", str(ranked)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("diffpref data: 2 bad rows:\n  lists.jsonl row 0: image 2: ")
    assert "corrupt or cut short" in output.err and "\n  lists.jsonl row 1: image 2: " in output.err
    assert "images decoded: 3 rows, 1 kept, 2 dropped" in output.out
    assert main(["validate", str(ranked), "--on_bad_row", "skip"]) == 0
    assert "3 rows, 1 kept, 2 dropped (2 unreadable image)" in capsys.readouterr().out
    assert main(["validate", "nowhere.parquet"]) == 1
    assert "nowhere.parquet does not exist" in capsys.readouterr().err
    assert main(["validate", str(ranked), "--max_rows", "1", "--min-size", "7"]) == 1
    assert "image 0 is 8x6 pixels, below the minimum of 7" in capsys.readouterr().err


def test_columns_on_the_command_line(parquet, image_bytes, capsys) -> None:
    path = str(parquet({"text": ["a"], "a": [image_bytes(1)], "b": [image_bytes(2)]}))
    assert main(["validate", path, "--columns", "prompt=text", "chosen=a", "rejected=b"]) == 0
    assert "1 kept" in capsys.readouterr().out
    for columns, message in (
        (["prompt"], "columns must be written as NAME=COLUMN, like prompt=my_caption, got 'prompt'"),
        (["prompt=a", "prompt=b"], "columns names prompt twice (a and b): keep one"),
        (["prompt=text"], "which also needs chosen, rejected"),
    ):
        assert main(["validate", path, "--columns", *columns]) == 1
        assert message in capsys.readouterr().err


def test_usage_errors_are_tyros_own(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["preview"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "preview" in capsys.readouterr().out
