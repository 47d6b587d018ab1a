"""The judge client against a real server on this machine: points, duels in both orders, and what is sent."""

import numpy as np
import pytest
import torch

from tests.rewards.judge_server import (
    NAN,
    asked,
    brighter,
    equal,
    flex,
    grey,
    judge,
    level,
    points,
    seen,
    serving,
    slow,
)
from tests.small_qwen import picture


def test_points_are_the_mean_or_one_dimension() -> None:
    with serving(lambda question: points(2.5, 4, 1)) as server:
        equal(judge(server.url).score(grey(9), ["a cat"]), 2.5)
        equal(judge(server.url, dimension="Coherence Score").score(grey(9), ["a cat"]), 4)
        equal(judge(server.url).score([], []))


def test_what_is_sent() -> None:
    """UnifiedReward's own request: the picture before the text, greedy; and the picture's own pixels."""
    image = picture(40, 30, phase=0)
    with serving(lambda question: points(1)) as server:
        judge(server.url + "/v1/", seed=7, max_tokens=99).score([image], ["a {prompt} of [cats]"])
        judge(server.url, image_format="jpeg").score([image], ["dog"])
        judge(server.url, image_format="jpeg", quality=5).score([image], ["dog"])
    first, *rest = server.questions
    assert {key: first[key] for key in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "judge",
        "temperature": 0,
        "seed": 7,
        "max_tokens": 99,
    }
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image_url", "text"]
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert rest[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert asked(first).endswith("\nText Caption: [a {prompt} of [cats]]")
    np.testing.assert_array_equal(seen(first)[0], np.asarray(image))
    errors = [np.abs(seen(question)[0].astype(int) - np.asarray(image)).mean() for question in rest]
    assert 0 < errors[0] < errors[1]


def test_scores_come_in_order_from_several_at_once() -> None:
    """The first pictures' replies arrive last; never more questions are open than `concurrency`."""
    levels = [50, 100, 150, 200, 240]
    with serving(slow) as server:
        equal(
            judge(server.url, concurrency=5, dimension="Alignment Score").score(grey(*levels), [""] * 5),
            1,
            2,
            3,
            4,
            4.8,
        )
        assert server.most_open > 1
        server.most_open = 0
        judge(server.url, concurrency=2).score(grey(200, 200, 200, 200), [""] * 4)
        assert server.most_open == 2


def test_numbers_are_compared_as_numbers() -> None:
    """10 is more than 9, which it is not as text; a template of one's own."""
    own = {"template": "Rate it for {prompt} from 0 to 10.", "mode": "points", "dimensions": ("Score",)}
    with serving(lambda question: f"Score: {level(question)[0]}/10") as server:
        equal(judge(server.url, **own).score(grey(9, 10), ["", "a cat"]), 9, 10)
    assert {asked(question) for question in server.questions} == {
        "Rate it for a cat from 0 to 10.",
        "Rate it for  from 0 to 10.",
    }


def test_shares_of_duels_within_each_prompt() -> None:
    """Four pictures of "a" and two of "b", mixed: wins by hand, every ordered pair asked once, never across prompts."""
    levels, prompts = [10, 200, 50, 90, 90, 30], ["a", "b", "a", "b", "a", "a"]
    with serving(brighter) as server:
        scores = flex(server.url).score(grey(*levels), prompts)
    equal(scores, 0, 1, 2 / 3, 0, 1, 1 / 3)
    orders = sorted(tuple(level(question)) for question in server.questions)
    within = [[10, 50, 90, 30], [200, 90]]
    assert orders == sorted((i, j) for group in within for i in group for j in group if i != j)
    assert {asked(q).split("**Prompt:** [")[1][0] for q in server.questions if 200 in level(q)} == {"b"}


def test_a_tie_is_half_a_win_each() -> None:
    with serving(brighter) as server:
        reward = flex(server.url)
        equal(reward.score(grey(5, 5, 9), ["a"] * 3), 0.25, 0.25, 1)
        assert reward.statistics["order_disagreements"] == 0


def test_a_judge_that_likes_what_comes_first() -> None:
    """Half a win each, and counted."""
    with serving(lambda question: '{"winner": "Image 1"}') as server:
        reward = flex(server.url)
        equal(reward.compare(grey(1, 2), grey(3, 4), ["a", "b"]), 0.5, 0.5)
        assert reward.statistics == {
            "requests": 4,
            "retries": 0,
            "timeouts": 0,
            "parse_failures": 0,
            "unanswered": 0,
            "order_disagreements": 2,
        }
        equal(reward.score(grey(1, 2, 3), ["a"] * 3), 0.5, 0.5, 0.5)
        assert reward.statistics["order_disagreements"] == 5


def test_a_tie_in_one_order_only_is_a_disagreement() -> None:
    with serving(lambda q: '{"winner": "tie"}' if level(q)[0] == 9 else '{"winner": "Image 1"}') as server:
        reward = flex(server.url)
        equal(reward.compare(grey(9), grey(3), ["a"]), 0.5)
        assert reward.statistics["order_disagreements"] == 1


def test_compare() -> None:
    with serving(brighter) as server:
        reward = flex(server.url)
        equal(reward.compare(grey(9, 3, 5), grey(3, 9, 5), ["a", "a", "b"]), 1, 0, 0.5)
        with pytest.raises(ValueError, match="compare needs a judge of pairs"):
            judge(server.url).compare(grey(9), grey(3), ["a"])
        with pytest.raises(ValueError, match="one prompt per image, got 1 for 2 images"):
            reward.compare(grey(9), grey(3, 4), ["a"])


def test_an_unreadable_duel_leaves_its_pictures_without_a_score() -> None:
    """Picture 1 against 3 has no winner; 2's own duels are all known."""
    with serving(lambda q: "who knows" if sorted(level(q)) == [1, 3] else brighter(q)) as server:
        reward = flex(server.url, retries=1)
        equal(reward.score(grey(1, 2, 3), ["a"] * 3), NAN, 0.5, NAN)
        equal(reward.compare(grey(1), grey(3), ["a"]), NAN)
        assert reward.statistics["unanswered"] == 4 and reward.statistics["parse_failures"] == 8


def test_one_picture_of_a_prompt_has_no_duel() -> None:
    with serving(brighter) as server:
        with pytest.raises(ValueError, match="two images of a prompt or more in one call, got one of 'b'"):
            flex(server.url).score(grey(1, 2, 3), ["a", "a", "b"])
        assert not server.questions


def test_the_pairs_logit() -> None:
    with serving(brighter) as server:
        a, b = torch.tensor([4.0]), torch.tensor([2.5])
        assert judge(server.url).pair_logit(a, b).tolist() == [1.5]
        with pytest.raises(ValueError, match="shares of duels have no pair_logit"):
            flex(server.url).pair_logit(a, b)
