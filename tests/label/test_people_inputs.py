"""A user's own folders, and a label run, become pairs; what people answer is read by `data` and training as it is."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from diffpref.data.command import main as data
from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.label.engine import label
from diffpref.people import read_pairs
from diffpref.people.inputs import prepare
from tests.label.people_world import open_page
from tests.label.world import PROMPTS, config_of, quiet


def draw(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)


def levels(row) -> list[int]:
    return [decode(image).getpixel((0, 0))[0] for image in row.images]


def answer(folder: Path, answers: dict[str, str], annotator: str = "") -> None:
    with open_page(folder, annotator) as client:
        for name, given in answers.items():
            client.answer(name, given)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Three pairs in a/ and b/, with captions of three kinds."""
    for number, name in enumerate(("cat", "dog", "inner/owl")):
        draw(tmp_path / f"mine/a/{name}.png", 10 * number)
        draw(tmp_path / f"mine/b/{name}.jpg", 100 + 10 * number)
    (tmp_path / "mine/a/cat.txt").write_text("a cat")
    (tmp_path / "mine/dog.txt").write_text("a dog")
    (tmp_path / "mine/captions.json").write_text('{"inner/owl": "an owl"}')
    return tmp_path / "mine"


def test_two_folders_become_pairs_and_the_answers_are_data(two: Path, capsys) -> None:
    folder, lines = prepare(two, max_pairs=500)
    assert folder == two and lines == [f"3 new pairs in {two / 'pairs.json'}"]
    assert {pair.id: (pair.prompt, pair.images) for pair in read_pairs(two)} == {
        "cat": ("a cat", ("a/cat.png", "b/cat.jpg")),
        "dog": ("a dog", ("a/dog.png", "b/dog.jpg")),
        "inner/owl": ("an owl", ("a/inner/owl.png", "b/inner/owl.jpg")),
    }
    with pytest.raises(ValueError, match="has pairs and no answers yet: compare them with `diffpref label-pairs"):
        read_preferences(two)
    answer(two, {"cat": "second", "dog": "tie"})
    rows = read_preferences(two)
    assert rows.dropped == {"tie": 1, "no answer": 1} and rows.schema == "answers of people (labels.json)"
    assert rows[0].prompt == "a cat" and rows[0].scores == (0.0, 1.0) and levels(rows[0])[0] == 0
    answer(two, {"inner/owl": "first", "cat": "second"}, "anna")
    assert data(["validate", str(two)]) == 0
    assert "read: 3 rows, 2 kept, 1 dropped (1 tie)" in capsys.readouterr().out
    assert sorted(rows.scores for rows in read_preferences(two)) == [(0.0, 1.0), (1.0, 0.0)]


def test_several_people_give_shares(two: Path) -> None:
    prepare(two, max_pairs=500)
    for person, given in (("anna", "first"), ("bo", "first"), ("cleo", "second"), ("dan", "tie")):
        answer(two, {"cat": given}, person)
    assert read_preferences(two)[0].scores == pytest.approx((0.625, 0.375))


def test_new_images_are_added_and_answers_stay(two: Path) -> None:
    prepare(two, max_pairs=500)
    answer(two, {"cat": "first"})
    for side, level in (("a", 1), ("b", 2)):
        draw(two / side / "fox.png", level)
    (two / "fox.txt").write_text("a fox")
    (two / "a/cat.txt").write_text("a black cat")
    assert prepare(two, max_pairs=500)[1] == [f"1 new pairs in {two / 'pairs.json'}"]
    assert len(read_pairs(two)) == 4 and read_preferences(two)[0].prompt == "a black cat"
    assert prepare(two, max_pairs=500)[1] == []


def test_a_missing_partner_or_caption_is_named(two: Path) -> None:
    (two / "b/dog.jpg").unlink()
    with pytest.raises(ValueError, match="no image named dog in .*b: add it, or remove dog.png"):
        prepare(two, max_pairs=500)
    draw(two / "b/dog.jpg", 3)
    (two / "dog.txt").unlink()
    with pytest.raises(ValueError, match="a/dog.txt, b/dog.txt and dog.txt do not exist: write it"):
        prepare(two, max_pairs=500)


def test_prompt_folders_are_compared_inside_and_spread_evenly(tmp_path: Path) -> None:
    for number, name in enumerate(("a red cat", "dog")):
        for image in range(4):
            draw(tmp_path / f"mine/{name}/{image}.png", 100 * number + image)
    (tmp_path / "mine/dog/prompt.txt").write_text("a dog on a hill\n")
    _, lines = prepare(tmp_path / "mine", max_pairs=6)
    assert "1 of 2 prompts are the names of their folders, like 'a red cat'" in lines[0]
    assert lines[2] == "6 of 12 pairs are asked: raise --max_pairs for more"
    pairs = read_pairs(tmp_path / "mine")
    assert [pair.prompt for pair in pairs].count("a dog on a hill") == 3 and len({pair.id for pair in pairs}) == 6
    assert [pair.images[0].split("/")[0] == pair.images[1].split("/")[0] for pair in pairs] == [True] * 6
    answer(tmp_path / "mine", {pairs[0].id: "first"})
    prepare(tmp_path / "mine", max_pairs=8)
    assert read_pairs(tmp_path / "mine")[:6] == pairs and len(read_pairs(tmp_path / "mine")) == 8
    row = read_preferences(tmp_path / "mine")[0]
    assert row.scores == (1.0, 0.0) and row.prompt == pairs[0].prompt


def test_pairs_of_another_program_stay_as_they_are(folder: Path) -> None:
    before = (folder / "pairs.json").read_bytes()
    assert prepare(folder, max_pairs=500) == (folder, []) and (folder / "pairs.json").read_bytes() == before


def test_folders_that_say_which_is_better_are_not_asked_about(tmp_path: Path) -> None:
    for side in ("w", "l"):
        draw(tmp_path / side / "cat.png", 1)
    with pytest.raises(ValueError, match="is labelled already, by the names of its folders"):
        prepare(tmp_path, max_pairs=500)
    with pytest.raises(ValueError, match="nothing here can be made into it. What can be labelled"):
        prepare(tmp_path / "w", max_pairs=500)


def test_a_label_run_is_compared_by_people(tmp_path: Path) -> None:
    config = config_of(tmp_path / "world", PROMPTS[:5], shard_size=4)
    label(config, say=quiet)
    run = tmp_path / "world/out"
    folder, lines = prepare(run, max_pairs=7)
    assert folder == run / "people" and lines[-1] == "7 of 12 pairs are asked: raise --max_pairs for more"
    pairs = read_pairs(folder)
    # Two whole prompts of four images have twelve pairs.
    assert len(pairs) == 7 and len({pair.prompt for pair in pairs} & set(PROMPTS)) == 2
    drawn = {}
    for generator in ("noise", "other"):
        with tarfile.open(run / f"images/{generator}/00000.tar") as tar:
            drawn |= {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    for pair in pairs:
        assert [(folder / image).read_bytes() for image in pair.images] == [drawn[Path(i).name] for i in pair.images]
    answer(folder, {pairs[0].id: "second"})
    assert read_preferences(folder)[0].scores == (0.0, 1.0)


def test_answers_are_about_the_images_that_were_compared(two: Path) -> None:
    prepare(two, max_pairs=500)
    answer(two, {"cat": "first", "dog": "second"})
    draw(two / "a/inner/owl.png", 222)
    assert prepare(two, max_pairs=500)[1] == []
    answer(two, {"inner/owl": "first"})
    assert len(read_preferences(two)) == 3
    draw(two / "a/cat.png", 222)
    with pytest.raises(ValueError, match="pair cat: an image is not the one that was compared: put it back"):
        read_preferences(two)
    assert read_preferences(two, on_bad_row="skip").dropped == {"image changed": 1}
    with pytest.raises(ValueError, match="images of 1 answered pairs are not those that were compared .*'cat'"):
        prepare(two, max_pairs=500)
