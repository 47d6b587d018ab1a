"""Which side is better is taken from a table of words, or said by the user: letters that look alike decide nothing."""

from pathlib import Path

import pytest

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.data.synonyms import side_of, two_sides

PAIRS = [
    ("better", "worse"),
    ("winner", "loser"),
    ("win", "lose"),
    ("win_image", "lose_image"),
    ("preferred", "dispreferred"),
    ("preferred_image", "dispreferred_image"),
    ("preferred_image", "nonpreferred_image"),
    ("preferred", "not_preferred"),
    ("image_w", "image_l"),
    ("imgW", "imgL"),
    ("chosen_image", "rejected_image"),
    ("good", "bad"),
    ("positive", "negative"),
    ("pos_path", "neg_path"),
    ("accepted", "refused"),
    ("best", "worst"),
    ("selected", "rejected"),
]


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(("better", "worse"), PAIRS)
def test_the_message_names_the_sides_as_the_words_mean(parquet, image_bytes, better: str, worse: str, turn: int):
    sides = {better: [image_bytes(200)], worse: [image_bytes(20)]}
    path = parquet({"prompt": ["a"], **dict(list(sides.items())[::turn])})
    wanted = {"chosen": better, "rejected": worse}
    with pytest.raises(ValueError) as caught:
        read_preferences(path)
    flag = str(caught.value).split("--columns ")[1].split(".")[0]
    asked = dict(text.split("=") for text in flag.split())
    assert asked == {name: column for name, column in wanted.items() if column != name}
    row = read_preferences(path, columns=asked)[0]
    assert [decode(image).getpixel((0, 0))[0] for image in row.images] == [200, 20] and row.scores == (1.0, 0.0)


@pytest.mark.parametrize("names", [("a", "b"), ("winner", "image"), ("preferred_image", "other"), ("wide", "long")])
def test_names_that_say_no_side_are_left_to_the_user(parquet, image_bytes, names: tuple[str, str]) -> None:
    path = parquet({"prompt": ["a"], names[0]: [image_bytes(1)], names[1]: [image_bytes(2)]})
    with pytest.raises(ValueError, match="no name here says for certain which image is better") as caught:
        read_preferences(path)
    asked = "--columns chosen=COLUMN_OF_THE_BETTER_IMAGE rejected=COLUMN_OF_THE_WORSE_IMAGE"
    assert f"{asked} (of {names[0]}, {names[1]})" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "nearest", "asked"),
    [
        ("caption image_paths reward", "scored lists", "prompt=caption images=image_paths scores=reward"),
        ("caption images ranking", "ranked lists", "prompt=caption ranks=ranking"),
        ("text image_0 image_1 label_0", "Pick-a-Pic", "caption=text jpg_0=image_0 jpg_1=image_1"),
        ("prompt image_1 image_2 votes_1 votes_2", "Rapidata votes", "image1=image_1 image2=image_2 votes_image1="),
        ("caption winner loser", "pairs (chosen, rejected)", "prompt=caption chosen=winner rejected=loser"),
        ("prompt winner image_w loser", "pairs (chosen, rejected)", "chosen=COLUMN_OF_THE_BETTER_IMAGE"),
    ],
)
def test_the_nearest_schema_is_the_one_that_the_names_mean(parquet, columns: str, nearest: str, asked: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_preferences(parquet({name: ["x"] for name in columns.split()}))
    assert f"Nearest: {nearest}, which" in str(caught.value) and f"--columns {asked}" in str(caught.value)


def test_paths_alone_do_not_say_that_the_first_is_better(json_file) -> None:
    row = {"prompt": "p", "path1": "a.png", "path2": "b.png"}
    with pytest.raises(ValueError, match="no name here says for certain which image is better"):
        read_preferences(json_file([row]))
    assert read_preferences(json_file([row | {"model1": "x", "model2": "y"}], "v3.json")).schema == "HPDv3"
    said = read_preferences(json_file([row], "said.json"), columns={"path1": "path1", "path2": "path2"})
    assert said.schema == "HPDv3"


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("better", "'chosen'"),
        ("worse", "'rejected'"),
        ("loser", "'rejected'"),
        ("reject", "'rejected'"),
        ("label", "'label_0' or 'label_1'"),
        ("path", "'path1' or 'path2'"),
    ],
)
def test_a_flag_with_a_word_for_a_side_is_told_the_schemas_name(parquet, flag: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"which no schema uses; did you mean {meant}\\?"):
        read_preferences(parquet({"prompt": ["a"], "x": ["b"]}), columns={flag: "x"})


def test_folders_may_have_any_name_of_the_table(tmp_path: Path, image_bytes) -> None:
    for name, level in (("loser", 20), ("winner", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.png").write_bytes(image_bytes(level))
        (tmp_path / "cat.txt").write_text("a cat")
    row = read_preferences(tmp_path)[0]
    assert [decode(image).getpixel((0, 0))[0] for image in row.images] == [200, 20]
    (tmp_path / "better").mkdir()
    with pytest.raises(ValueError, match="holds neither data files"):
        read_preferences(tmp_path)


def test_words_beside_the_side_make_another_column() -> None:
    assert [side_of(name) for name in ("chosen_score", "winner_model", "positive_prompt", "unlike", "image")] == [
        None
    ] * 5
    assert two_sides(["winner", "better", "loser"]) is None
