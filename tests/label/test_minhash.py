"""Near-duplicates against sets of words in plain Python, and every pair compared."""

import math
import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from diffpref.labelling.minhash import PERMUTATIONS, NearIndex, bands, shingle, signatures, words

VOCABULARY = [f"w{i}" for i in range(400)]


def corpus() -> list[str]:
    """Random texts of 1 to 40 words, most of them followed by copies with a few words changed or left out."""
    rng = random.Random(3)
    texts = []
    for _ in range(150):
        text = rng.choices(VOCABULARY, k=rng.randint(1, 40))
        texts.append(" ".join(text))
        for _ in range(rng.randint(0, 4)):
            copy = list(text)
            for _ in range(rng.randint(0, 3)):
                copy[rng.randrange(len(copy))] = rng.choice(VOCABULARY)
            copy = copy[: len(copy) - rng.randint(0, 2) or None]
            texts.append(" ".join(copy))
    return texts


def pairs_of_words(text: str) -> set[tuple[str, str]]:
    line = ["<", *text.split(), ">"]
    return set(zip(line, line[1:], strict=False))


def similarity(a: str, b: str) -> float:
    one, two = pairs_of_words(a), pairs_of_words(b)
    return len(one & two) / len(one | two)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo, of a  CAT.", "a photo of a cat"),
        ("Straße; naïve CAFE\u0301!", "strasse naïve café"),
        ("“it’s” (red:1.2)", "it s red 1 2"),
        ("\U0001f431 and \u2764\ufe0f", "\U0001f431 and \u2764"),
        ("猫が two", "猫 が two"),
        ("हिन्दी snake_case", "हिन्दी snake case"),
        ("?!  ...", "?! ..."),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == ([expected] if text.startswith("?") else expected.split(" "))


def test_similarity_is_that_of_the_sets_of_neighbouring_words() -> None:
    texts = [*corpus()[:60], "a a a a", "a", "red apple", "green apple"]
    shingles = shingle(texts)
    everyone = np.arange(len(texts))
    for i, text in enumerate(texts):
        expected = [similarity(text, other) for other in texts]
        np.testing.assert_allclose(shingles.jaccard(i, everyone), expected, atol=1e-12)
    assert len(shingles.jaccard(0, everyone[:0])) == 0


def test_the_share_of_equal_signature_entries_estimates_the_similarity() -> None:
    texts = corpus()
    signature = signatures(shingle(texts))
    signs = []
    for i, j in combinations(range(120), 2):
        true = similarity(texts[i], texts[j])
        if 0.05 < true < 0.95:
            error = (signature[i] == signature[j]).mean() - true
            assert abs(error) < 5 * math.sqrt(true * (1 - true) / PERMUTATIONS)
            signs.append(error)
    # Pairs of one family share words, so that their errors are not independent: 0.02 is half of one pair's deviation.
    assert len(signs) > 60 and abs(np.mean(signs)) < 0.02


@pytest.mark.parametrize(("threshold", "expected"), [(0.8, (21, 6)), (0.5, (42, 3)), (1.0, (1, 128)), (0.05, (128, 1))])
def test_bands_are_as_long_as_the_recall_allows(threshold: float, expected: tuple[int, int]) -> None:
    count, rows = bands(threshold)
    assert (count, rows) == expected

    def missed(count: int, rows: int) -> float:
        return (1 - threshold**rows) ** count

    assert missed(count, rows) <= 0.01
    if rows < PERMUTATIONS:
        assert missed(PERMUTATIONS // (rows + 1), rows + 1) > 0.01


@pytest.mark.parametrize("threshold", [0.4, 0.8, 1.0])
def test_near_texts_are_found_as_by_comparing_every_pair(threshold: float) -> None:
    texts = corpus()
    index = NearIndex(shingle(texts), threshold)
    near = missed = 0
    for i, text in enumerate(texts):
        found = index.nearest(i)
        best = max((similarity(text, other) for other in texts[:i]), default=0.0)
        if best >= threshold:
            near += 1
            missed += found is None or found[1] < best - 1e-9
        else:
            assert found is None  # no false positives
        if found is not None:
            assert found[1] == pytest.approx(similarity(text, texts[found[0]])) and found[0] < i
        index.add(i)
    assert near > 20 and missed <= 0.01 * near


def test_only_added_texts_are_found() -> None:
    index = NearIndex(shingle(["one two", "One, two.", "three"]), 0.8)
    assert index.nearest(1) is None
    index.add(0)
    assert index.nearest(1) == (0, 1.0) and index.nearest(2) is None
    assert index.empty_copy().nearest(1) is None and index.nearest(1) == (0, 1.0)


def test_nothing_depends_on_the_seed_of_pythons_hashes() -> None:
    code = (
        "from diffpref.labelling.minhash import *; print(band_keys(shingle(['a red fox', 'two cats']), 0.8).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 100
