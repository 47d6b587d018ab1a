"""Which prompts are kept and why not the others."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffpref.labelling.prompts import CheckedPrompt, PromptSettings, check_prompts

PUBLIC = Path(os.environ.get("DIFFPREF_TEST_DATA", "no data"))
LONG = "a red fox in deep snow near an old wooden house with a green door and two windows under the northern lights"
NEAR = LONG.replace("northern", "bright")


def similarity(a: str, b: str) -> float:
    """Shared over all pairs of neighbouring words, the edges among them."""
    one, two = (set(zip(["<", *text.split()], [*text.split(), ">"], strict=True)) for text in (a, b))
    return len(one & two) / len(one | two)


def check(tmp_path: Path, prompts: Sequence[str], **settings: object) -> list[CheckedPrompt]:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    return check_prompts(PromptSettings(str(path), **settings))  # type: ignore[arg-type]


def public(name: str) -> Path:
    if not (PUBLIC / name).is_file():
        pytest.skip(f"{name} of the public evaluation sets is not in the folder DIFFPREF_TEST_DATA")
    return PUBLIC / name


def test_every_row_keeps_a_line_with_its_status(tmp_path: Path) -> None:
    evaluation = tmp_path / "bench.jsonl"
    evaluation.write_text(json.dumps({"tag": "x", "prompt": "a photo of a bench"}) + "\n", encoding="utf-8")
    prompts = [
        "red apple",
        "green apple",
        "",
        "A photo of a  cat",
        "a photo of a cat.",
        " Red\tAPPLE ",
        "A photo, of a",
    ]
    prompts += ["a photo of a BENCH", "a photo of a bench!", "a dog chasing a cat", "a cat chasing a dog", LONG, NEAR]
    checked = check(tmp_path, prompts, exclude=(str(evaluation),), max_tokens=20)
    assert [(c.row, c.status, c.kept) for c in checked] == [
        (0, "ok", True),
        (1, "ok", True),
        (3, "ok", True),
        (4, "near_duplicate", False),
        (5, "duplicate", False),
        (6, "ok", True),
        (7, "evaluation_set", False),
        (8, "evaluation_set", False),
        (9, "ok", True),
        (10, "ok", True),
        (11, "too_long", True),
        (12, "near_duplicate", False),
    ]
    detail = {c.row: c.detail for c in checked}
    assert detail[4] == "row 3, similarity 1.00: A photo of a  cat" and detail[5] == "row 0: red apple"
    assert detail[7] == "bench.jsonl: a photo of a bench"
    assert detail[8] == "bench.jsonl, similarity 1.00: a photo of a bench"
    assert detail[12] == f"row 11, similarity {similarity(LONG, NEAR):.2f}: {LONG}" and detail[11] == ""


def test_flagged_near_duplicates_are_kept_with_the_same_status(tmp_path: Path) -> None:
    prompts = [LONG, NEAR, NEAR.replace("a red", "a grey"), "two cats"]
    assert similarity(prompts[0], prompts[2]) < 0.8 <= similarity(prompts[1], prompts[2])
    dropped, flagged = (check(tmp_path, prompts, near_duplicates=mode) for mode in ("drop", "flag"))
    # The third is near the second alone, which is no original.
    assert [c.status for c in dropped] == [c.status for c in flagged] == ["ok", "near_duplicate", "ok", "ok"]
    assert [c.kept for c in dropped] == [True, False, True, True] and all(c.kept for c in flagged)
    stricter = check(tmp_path, prompts, similarity=1.0)
    assert all(c.status == "ok" for c in stricter)


def test_a_long_prompt_that_is_dropped_keeps_no_other_out(tmp_path: Path) -> None:
    tokens = len(LONG.split()) + 2  # of single common words each is one token
    longer = LONG + " tonight"
    flag, drop = (check(tmp_path, [longer, LONG], too_long=mode, max_tokens=tokens) for mode in ("flag", "drop"))
    assert [(c.status, c.kept) for c in flag] == [("too_long", True), ("near_duplicate", False)]
    assert [(c.status, c.kept) for c in drop] == [("too_long", False), ("ok", True)]
    assert [c.tokens for c in drop] == [tokens + 1, tokens]


def test_tokens_are_clips_without_truncation(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    prompts = ["a photo of a cat", "An Extraordinarily ornate 12,5 €-coin", "word " * 90, "🐱🐱"]
    found = [c.tokens for c in check(tmp_path, prompts)]
    padded = SimpleTokenizer()(prompts, context_length=200)
    assert found == (padded != 0).sum(1).tolist()
    assert found[0] == 7  # start, a, photo, of, a, cat, end: 49406 320 1125 539 320 2368 49407
    assert found[2] == 92


def test_ids_are_of_the_composed_form(tmp_path: Path) -> None:
    (first, second) = check(tmp_path, ["cafe\u0301", "caf\u00e9"])
    assert first.prompt == second.prompt == "caf\u00e9" and second.status == "duplicate"
    assert first.prompt_id == second.prompt_id == hashlib.sha256(b"caf\xc3\xa9").hexdigest()[:16]


def test_max_prompts_counts_those_that_are_kept(tmp_path: Path) -> None:
    prompts = ["one fox", "one fox", "two cats", "two cats", "three dogs"]
    checked = check(tmp_path, prompts, max_prompts=2)
    assert [c.status for c in checked] == ["ok", "duplicate", "ok"]
    everything = check(tmp_path, prompts)
    assert checked == everything[:3]


def test_near_duplicates_of_a_public_list_as_by_comparing_every_pair() -> None:
    checked = check_prompts(PromptSettings(str(public("PartiPrompts.tsv"))))
    assert len(checked) == 1632
    plain = ["".join(c if c.isalnum() or c.isspace() else " " for c in p.prompt.casefold()) for p in checked]
    near = [p.row for p in checked if p.status == "near_duplicate"]
    originals = [p.row for p in checked if p.kept]
    for row in near:
        assert any(similarity(plain[row], plain[other]) >= 0.8 for other in originals if other < row)
    for row in originals[:400]:
        assert not any(similarity(plain[row], plain[other]) >= 0.8 for other in originals if other < row)


def test_an_evaluation_set_leaves_nothing_of_itself() -> None:
    geneval = str(public("geneval_metadata.jsonl"))
    with pytest.raises(ValueError, match="none of 553 prompts is kept"):
        check_prompts(PromptSettings(geneval, exclude=(geneval,)))
    checked = check_prompts(PromptSettings(geneval, exclude=(str(public("PartiPrompts.tsv")),)))
    assert len(checked) == 553 and len([c for c in checked if c.kept]) > 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity": 0.0}, "similarity must be above 0 and at most 1, got 0.0"),
        ({"similarity": float("nan")}, "similarity must be"),
        ({"max_prompts": 0}, "max_prompts must be 1 or above, got 0"),
        ({"max_tokens": 2}, "max_tokens must be 3 or above"),
        ({"exclude": ("absent.tsv",)}, "exclude: absent.tsv does not exist"),
        ({"too_long": "drop", "max_tokens": 3}, "none of 2 prompts is kept"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(tmp_path, ["red apple", "two cats"], **settings)


def test_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        check_prompts(PromptSettings(""))
    with pytest.raises(ValueError, match="holds no prompt"):
        check(tmp_path, ["", " "])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="exclude: .*empty.txt holds no prompt"):
        check(tmp_path, ["red apple"], exclude=(str(tmp_path / "empty.txt"),))
