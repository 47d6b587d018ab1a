"""The files of a labelling by people: pairs and answers read back, and what is wrong in them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffpref.files import atomic
from diffpref.people import Pair, read_labels, read_pairs, serve, unanswered, write_pairs
from diffpref.people.command import main
from diffpref.people.labelling import Labelling
from tests.label.people_world import open_page


def test_several_annotators_are_averaged(folder: Path) -> None:
    for name, answers in {
        "": ["first", "first", "tie"],
        "anna": ["first", "second", "second", "second"],
        "bo-2": ["tie"],
    }.items():
        with open_page(folder, name) as client:
            for i, answer in enumerate(answers):
                client.answer(f"0-{i}", answer)
    assert json.loads((folder / "labels.anna.json").read_text())["annotator"] == "anna"
    assert read_labels(folder) == pytest.approx({"0-0": 2 / 3, "0-1": 0.0, "0-2": -0.5, "0-3": -1.0})
    (folder / "labels.anna.json").unlink()
    assert list(read_labels(folder)) == ["0-0", "0-1", "0-2"] and unanswered(folder) == ["0-3"]


@pytest.mark.parametrize("name", ["../x", "a b", "a.b", "a/b", "\n"])
def test_an_annotators_name_is_a_part_of_a_file_name(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="annotator must consist of letters.*choose another name"):
        serve(folder, port=0, annotator=name, open_browser=False)


def test_pairs_come_back_as_written_and_never_join_old_labels(folder: Path) -> None:
    pairs = read_pairs(folder)
    assert pairs[1] == Pair("0-1", "prompt 1 <b>&", ("p00001/0.png", "p00001/1.png"))
    write_pairs(folder, pairs[:2])
    assert read_pairs(folder) == pairs[:2] and unanswered(folder) == ["0-0", "0-1"] and read_labels(folder) == {}
    Labelling(folder, "anna").answer("0-0", "first")
    with pytest.raises(ValueError, match=r"labels\.anna\.json holds answers .*choose a new folder, or delete"):
        write_pairs(folder, pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair, got none"),
        ([("a", "p00000/0.png", "p00000/1.png"), ("a", "p00001/0.png", "p00001/1.png")], "ids must differ.*'a'"),
        ([("", "p00000/0.png", "p00000/1.png")], "ids must differ and not be empty"),
        ([("a", "p00000/0.png", "p00000/2.png")], r"image 'p00000/2\.png' of pair 'a' does not exist; put it back"),
        ([("a", "p00000/0.png", "../secret.png")], "must lie in the folder; copy it there"),
        ([("a", "p00000/0.png", "/secret.png")], "must lie in the folder"),
        ([("a", "p00000/0.png", "link.png")], "must lie in the folder"),
        ([("a", "p00000/0.png", "pairs.json")], "must end in one of .*save it as PNG"),
    ],
)
def test_pairs_that_cannot_be_shown(folder: Path, pairs: list[tuple[str, str, str]], message: str) -> None:
    Image.new("L", (1, 1)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    given = [Pair(name, "p", (first, second)) for name, first, second in pairs]
    before = (folder / "pairs.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        write_pairs(folder, given)
    assert (folder / "pairs.json").read_bytes() == before
    entries = [{"id": pair.id, "prompt": "p", "pictures": list(pair.images)} for pair in given]
    atomic.write_json(folder / "pairs.json", {"format": "diffpref-pairs-1", "pairs": entries})
    with pytest.raises(ValueError, match=message):
        serve(folder, port=0, annotator="", open_browser=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "pairs.json must be valid JSON: .*Repair it"),
        ("[]", r"format must be 'diffpref-pairs-1', got \[\]"),
        ('{"format": "diffpref-pairs-2"}', "format must be 'diffpref-pairs-1', got 'diffpref-pairs-2'"),
        ('{"format": "diffpref-pairs-1"}', "pairs must be a list, got None"),
        ('{"format": "diffpref-pairs-1", "pairs": [{"id": 1}]}', "pair 0 must have the texts id and prompt"),
        (
            '{"format": "diffpref-pairs-1", "pairs": [{"id": "a", "prompt": "p", "pictures": ["b"]}]}',
            "pair 0 must have the texts id and prompt and two images",
        ),
    ],
)
def test_a_malformed_pairs_file(folder: Path, text: str, message: str) -> None:
    (folder / "pairs.json").write_text(text)
    for read in (read_pairs, read_labels, unanswered):
        with pytest.raises(ValueError, match=message):
            read(folder)


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.json does not exist, and nothing here can be made into it"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"format": "diffpref-labels-1", "labels": {"0-0": "fir',
            r"labels\.anna\.json must be valid JSON: .*Repair it",
        ),
        ('{"labels": {}}', "format must be 'diffpref-labels-1', got None"),
        ('{"format": "diffpref-labels-1", "labels": ["0-0"]}', r"labels must map pair ids to answers, got \['0-0'\]"),
        ('{"format": "diffpref-labels-1", "labels": {"9-9": "tie"}}', r"pair '9-9' is not in pairs\.json.*remove"),
        ('{"format": "diffpref-labels-1", "labels": {"0-0": "left"}}', r"'0-0' must be one of \['first'.*got 'left'"),
        ('{"format": "diffpref-labels-1", "labels": {"0-0": ["tie"]}}', r"'0-0' must be one of .*got \['tie'\]"),
    ],
)
def test_a_malformed_labels_file(folder: Path, text: str, message: str) -> None:
    (folder / "labels.anna.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(folder)
    with pytest.raises(ValueError, match=message):
        serve(folder, port=0, annotator="anna", open_browser=False)


def test_labels_need_their_images(folder: Path) -> None:
    Labelling(folder, "").answer("0-0", "first")
    (folder / "p00003/1.png").unlink()
    with pytest.raises(ValueError, match=r"pairs\.json: the image 'p00003/1\.png' of pair '0-3' does not exist"):
        read_labels(folder)
