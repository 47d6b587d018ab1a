"""Judges' replies, good and bad, as numbers; and that the questions are the published ones."""

from dataclasses import replace
from hashlib import sha256

import pytest

from diffpref.rewards.judge_published import TEMPLATES
from diffpref.rewards.judge_templates import PairsTemplate, PointsTemplate
from tests.rewards.judge_server import points


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (points(2.694700002670288, 2, 3), 2.694700002670288),
        ("**Alignment Score (1-5):** 3\n**Coherence Score (1-5)**: 1\n- *Style Score*: 1", 3),
        ('{"Alignment Score": 4, "Coherence Score": "2.5", "Style Score": 1e0}', 4),
        ("<think>Alignment Score: 1? No.</think>" + points(4), 4),
        (points(5) + "\n" + points(5), 5),  # said twice, but the same
        ("Alignment Score (1-5): 4\nCoherence Score (1-5): 4", None),
        (points(4) + points(3), None),
        (points(5.5), None),
        (points(0), None),
        (points(10), None),
        ("Alignment Score (1-5): 3,5\nCoherence Score (1-5): 1\nStyle Score (1-5): 1", None),
        ("Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z", None),
        ("I cannot rate this picture.", None),
        ("", None),
    ],
)
def test_points_in_a_reply(reply: str, expected: float | None) -> None:
    template = TEMPLATES["unified_reward_points"]
    assert isinstance(template, PointsTemplate)
    found = template.points(reply)
    assert (found and found["Alignment Score"]) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"categories": [{"cat_winner": "Image 1"}], "winner": "Image 2"}', 0.0),
        ('Here it is:\n```json\n{"winner": "image 1"}\n```', 1.0),
        ('{"winner": 2}', 0.0),
        ('{"winner": "Tie"}', 0.5),
        ('{"reason": "the "best" of both", "cat_winner": "Image 2", "winner": "Image 1"}', 1.0),  # no valid JSON
        ('<think>{"winner": "Image 1"}</think>{"winner": "Image 2"}', 0.0),
        ("Image 1 is better.", 1.0),
        ("Image 2 is better.", 0.0),
        ("Both images are equally good.", 0.5),
        ('{"winner": "Image 1/2"}', None),
        ('{"categories": [{"cat_winner": "Image 1"}], "reason": "Image 1 is better."}', None),
        ('{"categories": [{"cat_winner": "Image 1", "rea', None),  # cut off before the winner
        ("Image 1 is better. No, Image 2 is better.", None),
        ("Image 1 is not better.", None),
        ("", None),
    ],
)
def test_the_winner_in_a_reply(reply: str, expected: float | None) -> None:
    template = TEMPLATES["unified_reward_flex"]
    assert isinstance(template, PairsTemplate) and template.first_is_better(reply) == expected


@pytest.mark.parametrize(
    ("numbers", "dimension", "expected"),
    [
        ((0.4357, 0.5643, 0.418, 0.582, 0.4079, 0.5921), "", 0.0),
        ((0.9, 0.1, 0.4, 0.6, 0.4, 0.6), "", 1.0),  # the mean, not the count of dimensions
        ((0.9, 0.1, 0.4, 0.6, 0.4, 0.6), "Style Score", 0.0),
        ((0.3, 0.7, 0.7, 0.3, 0.5, 0.5), "", 0.5),
        ((9, 10, 0.4, 0.6, 0.4, 0.6), "", None),
    ],
)
def test_the_better_of_relative_scores(numbers: tuple[float, ...], dimension: str, expected: float | None) -> None:
    """The first reply is the published example of UnifiedReward 2.0, to four digits."""
    lines = "Alignment Score:\n Image 1: {}\n Image 2: {}\n\nCoherence Score:\n Image 1: {}\n Image 2: {}\n\n"
    reply = (lines + "Style Score:\n Image 1: {}\n Image 2: {}\n").format(*numbers)
    template = TEMPLATES["unified_reward_pairs"]
    assert isinstance(template, PairsTemplate)
    assert replace(template, dimension=dimension).first_is_better(reply) == expected
    assert template.first_is_better(reply.replace("Image 2", "Image 3")) is None


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("unified_reward_points", "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"),
        ("unified_reward_pairs", "828e9ab2f81c3b6d42fb68dd5b8ea1b7647063c4b5d79a98d003ff25de5c5ca8"),
        ("unified_reward_flex", "bd0c2d5635a7b6b3f382416789dad5c71563d9b68eeacfe75ece5795dff5ebda"),
    ],
)
def test_the_questions_are_the_published_ones(name: str, published: str) -> None:
    """The SHA-256 of `problem` in CodeGoat24/UnifiedReward's scripts at ff6f520, with "{prompt}" as the prompt."""
    assert sha256(TEMPLATES[name].text.encode()).hexdigest() == published
