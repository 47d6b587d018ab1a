"""Which rows are held out: whole prompts, the same whatever the order, never more than asked for by much."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from diffpref.data.holdout import MOST, hold_out
from diffpref.data.rows import Preferences, Row, in_memory


def rows(prompts: Sequence[str], images: Sequence[bytes] = ()) -> Preferences:
    return in_memory(
        "test",
        "pairs",
        [
            Row(
                prompt=prompt,
                images=(images[place] if images else b"%d" % place, b"worse"),
                scores=(1.0, 0.0),
                where=f"row {place}",
            )
            for place, prompt in enumerate(prompts)
        ],
    )


def names(some: Preferences | None) -> list[str]:
    return [] if some is None else [row.where for row in some]


PROMPTS = [f"thing {place}" for place in range(100)]


def test_a_tenth_of_the_rows_is_held_out_and_nothing_is_on_both_sides() -> None:
    train, held = hold_out(rows(PROMPTS), 0.1)
    assert len(names(held)) == 10 and sorted(names(train) + names(held)) == sorted(f"row {p}" for p in range(100))
    assert "held out: 10 of 100 rows" in train.summary()
    # In the order that the rows had, so that a stream over them is what it would be without the others.
    assert names(train) == sorted(names(train), key=lambda where: int(where.split()[1]))


def test_the_same_rows_in_another_order_and_mostly_the_same_with_more_rows() -> None:
    _, held = hold_out(rows(PROMPTS), 0.1)
    _, turned = hold_out(rows(PROMPTS[::-1]), 0.1)
    assert held is not None and turned is not None
    kept = {row.prompt for row in held}
    assert kept == {row.prompt for row in turned}
    _, more = hold_out(rows([*PROMPTS, "another", "and another"]), 0.1)
    assert more is not None and len(kept & {row.prompt for row in more}) >= 8


def test_a_prompt_is_on_one_side_whatever_its_case_and_spaces() -> None:
    prompts = [word for place in range(30) for word in (f"Thing {place}", f"thing  {place} ", f"THING {place}")]
    train, held = hold_out(rows(prompts), 9)
    assert held is not None and len(held) == 9
    sides = [{" ".join(row.prompt.lower().split()) for row in some} for some in (train, held)]
    assert not sides[0] & sides[1] and len(sides[1]) == 3


def test_rows_of_one_prompt_are_told_apart_by_their_better_image() -> None:
    images = [b"image %d" % (place // 2) for place in range(40)]
    train, held = hold_out(rows([""] * 40, images), 4)
    assert held is not None and len(held) == 4
    assert not {row.images[0] for row in train} & {row.images[0] for row in held}


def test_images_may_be_files(tmp_path: Path) -> None:
    made = []
    for place in range(20):
        file = tmp_path / f"{place}.png"
        file.write_bytes(b"%d" % place)
        made.append(Row(prompt="", images=(file, file), scores=(1.0, 0.0), where=f"row {place}"))
    _, held = hold_out(in_memory("test", "pairs", made), 2)
    assert len(names(held)) == 2


@pytest.mark.parametrize(("count", "wanted", "held"), [(9, 0.1, 0), (10, 0.1, 1), (100, 0, 0), (100, 64, 64)])
def test_shares_are_rounded_down_and_numbers_are_numbers(count: int, wanted: float, held: int) -> None:
    assert len(names(hold_out(rows(PROMPTS[:count]), wanted)[1])) == held


def test_a_share_takes_no_more_rows_than_tell_something() -> None:
    many = rows([f"thing {place}" for place in range(5000)])
    assert len(names(hold_out(many, 0.1)[1])) == MOST and len(names(hold_out(many, 600)[1])) == 600


def test_prompts_that_are_too_large_to_be_held_out_are_said() -> None:
    train, held = hold_out(rows(["one", "other"] * 24), 0.1)
    assert held is None and len(train) == 48
    assert "held out: none of 48 rows: 4 were wanted, and each prompt has more than twice as many" in train.summary()


@pytest.mark.parametrize(("wanted", "message"), [(2.5, "a share below 1 or a whole number"), (100, "leaves none of")])
def test_what_cannot_be_held_out_is_refused(wanted: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out(rows(PROMPTS), wanted)
