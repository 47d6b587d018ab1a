"""The judge client against a real server on this machine: replies, failures, orders, and what is refused."""

import json
import threading
import time
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch

from diffpref.rewards import find_reward
from diffpref.rewards.judge_parsing import TEMPLATES
from diffpref.rewards.vlm_judge import VlmJudge, VlmJudgeSettings
from tests.rewards.judge_server import Answer, asked, brighter, grey, in_turn, level, points, seen, serving, slow
from tests.small_qwen import picture

NAN = float("nan")


def judge(url: str, **settings: object) -> VlmJudge:
    values = {"endpoint": url, "model": "judge", "backoff": 0.01, **settings}
    return VlmJudgeSettings(**values).load(torch.device("cpu"))  # type: ignore[arg-type]


def flex(url: str, **settings: object) -> VlmJudge:
    return judge(url, template="unified_reward_flex", **settings)


def equal(scores: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


# Points


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
    found = TEMPLATES["unified_reward_points"].points(reply)
    assert (found and found["Alignment Score"]) == expected


def test_numbers_are_compared_as_numbers() -> None:
    """10 is more than 9, which it is not as text; a template of one's own."""
    own = {"template": "Rate it for {prompt} from 0 to 10.", "mode": "points", "dimensions": ("Score",)}
    with serving(lambda question: f"Score: {level(question)[0]}/10") as server:
        equal(judge(server.url, **own).score(grey(9, 10), ["", "a cat"]), 9, 10)
    assert {asked(question) for question in server.questions} == {
        "Rate it for a cat from 0 to 10.",
        "Rate it for  from 0 to 10.",
    }


# Pairs


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
    assert TEMPLATES["unified_reward_flex"].first_is_better(reply) == expected


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
    assert TEMPLATES["unified_reward_pairs"].first_is_better(reply, dimension) == expected
    assert TEMPLATES["unified_reward_pairs"].first_is_better(reply.replace("Image 2", "Image 3")) is None


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
        with pytest.raises(ValueError, match="one prompt a picture, got 1 for 2 pictures"):
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
        with pytest.raises(ValueError, match="two pictures of a prompt or more in one call, got one of 'b'"):
            flex(server.url).score(grey(1, 2, 3), ["a", "a", "b"])
        assert not server.questions


def test_the_pairs_logit() -> None:
    with serving(brighter) as server:
        a, b = torch.tensor([4.0]), torch.tensor([2.5])
        assert judge(server.url).pair_logit(a, b).tolist() == [1.5]
        with pytest.raises(ValueError, match="shares of duels have no pair_logit"):
            flex(server.url).pair_logit(a, b)


# Failures


def test_an_unreadable_reply_is_asked_again_differently() -> None:
    with serving(in_turn("hm", Answer(None), points(3, 3, 3))) as server:
        reward = judge(server.url, seed=5)
        equal(reward.score(grey(1), ["a"]), 3)
    assert [(question["seed"], question["temperature"]) for question in server.questions] == [
        (5, 0),
        (6, 0.5),
        (7, 0.5),
    ]
    assert (reward.statistics["retries"], reward.statistics["parse_failures"]) == (2, 2)
    assert reward.statistics["unanswered"] == 0


def test_what_is_never_readable_is_nan() -> None:
    with serving(lambda question: "hm" if level(question) == [1] else points(2, 2, 2)) as server:
        reward = find_reward("vlm_judge", settings={"endpoint": server.url, "model": "judge", "retries": 2})
        equal(reward.measure(grey(1, 2), ["a", "b"]), NAN, 2)
        with pytest.raises(ValueError, match="'vlm_judge' returned nan for picture 0"):
            reward(grey(1, 2), ["a", "b"])
    assert len(server.questions) == 8


def test_a_busy_server_is_asked_again_the_same_when_it_says() -> None:
    """Not before Retry-After's 0.3 seconds, and at once for a date that is past, whatever `backoff` is."""
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    replies = (
        Answer(status=429, headers={"Retry-After": "0.3"}, body={"error": {"message": "slow down"}}),
        Answer(status=503, headers=past, body="loading"),
    )
    with serving(in_turn(*replies, points(3, 3, 3))) as server:
        reward = judge(server.url, backoff=100)
        start = time.monotonic()
        equal(reward.score(grey(1), ["a"]), 3)
        assert 0.3 < time.monotonic() - start < 5
    assert len({json.dumps(question) for question in server.questions}) == 1
    assert (reward.statistics["requests"], reward.statistics["retries"]) == (3, 2)


def test_pauses_double() -> None:
    """0.1 and 0.2 seconds before the second and third try."""
    times: list[float] = []

    def reply(question: dict[str, Any]) -> Answer | str:
        times.append(time.monotonic())
        return Answer(status=500, body="oops") if len(times) < 3 else points(1)

    with serving(reply) as server:
        judge(server.url, backoff=0.1).score(grey(1), ["a"])
    assert times[1] - times[0] >= 0.1 and times[2] - times[1] >= 0.2


def test_a_late_reply_is_nan_and_counted() -> None:
    end = threading.Event()

    def reply(question: dict[str, Any]) -> str:
        if level(question) == [1]:
            end.wait()
        return points(4, 4, 4)

    with serving(reply) as server:
        reward = judge(server.url, timeout=0.5, retries=1)
        equal(reward.score(grey(1, 2), ["a", "b"]), NAN, 4)
        end.set()
    assert (reward.statistics["timeouts"], reward.statistics["unanswered"]) == (2, 1)


def test_a_broken_connection_is_tried_again() -> None:
    with serving(
        in_turn(None, Answer(body="half an ans"), Answer(body={"object": "error"}), points(2, 2, 2))
    ) as server:
        equal(judge(server.url).score(grey(1), ["a"]), 2)


@pytest.mark.parametrize(
    ("answer", "said"), [(None, "RemoteDisconnected"), (Answer(status=502, body="no gateway"), "HTTP 502: no gateway")]
)
def test_a_server_that_fails_to_the_end_stops_the_work(answer: Answer | None, said: str) -> None:
    with serving(lambda question: answer) as server:
        reward = judge(server.url, retries=2, concurrency=1)
        with pytest.raises(ConnectionError, match=f"{server.url} failed 3 times, at last with {said}.*raise retries"):
            reward.score(grey(*range(50)), ["a"] * 50)
    assert len(server.questions) < 20  # the rest is not asked


def test_a_server_that_is_gone() -> None:
    with serving(lambda question: points(1)) as server:
        reward = judge(server.url, retries=1)
    with pytest.raises(ConnectionError, match="failed 2 times, at last with ConnectionRefusedError"):
        reward.score(grey(1), ["a"])


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too many tokens", "type": "BadRequestError", "code": 400}},
        {"object": "error", "message": "too many tokens", "code": 400},
        {"error": "too many tokens"},
        "too many tokens",
    ],
    ids=["vllm", "older vllm", "text-generation-inference", "plain"],
)
def test_a_question_that_is_refused(body: object) -> None:
    with serving(lambda question: Answer(status=400, body=body)) as server:
        message = f"{server.url}/v1/chat/completions answered HTTP 400: too many tokens$"
        with pytest.raises(ValueError, match=message):
            judge(server.url).score(grey(1), ["a"])
        assert len(server.questions) == 1


# Loading


def test_what_is_loaded_and_its_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes to the server and nowhere else."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    with serving(lambda question: points(1)) as server:
        reward = judge(server.url, api_key_env="JUDGE_KEY", image_format="jpeg")
        reward.score(grey(1), ["a"])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer sk-secret"] * 2
    assert "secret" not in repr(reward.provenance) + repr(reward.settings)
    expected = {
        "model": "judge",
        "served": "CodeGoat24/UnifiedReward-2.0",
        "endpoint": server.url,
        "template": "unified_reward_points",
        "unit": "points: mean of Alignment Score, Coherence Score, Style Score",
        "pictures": "jpeg, quality 95",
        "sampling": "temperature 0, max_tokens 4096, seed 0",
    }
    assert {key: reward.provenance[key] for key in expected} == expected


def test_servers_that_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda question: points(1)) as server:
        with pytest.raises(
            ValueError, match=rf"model must be one of \['judge'\], which {server.url} serves, got 'gpt'"
        ):
            judge(server.url, model="gpt")
        with pytest.raises(ValueError, match="/v1/models answered HTTP 404: Not Found"):
            judge(server.url + "/elsewhere")
        monkeypatch.delenv("NO_KEY", raising=False)
        with pytest.raises(ValueError, match="variable 'NO_KEY' holds no key; set it"):
            judge(server.url, api_key_env="NO_KEY")
        monkeypatch.setenv("NO_KEY", "sk-secret\nX-Header: 1")
        with pytest.raises(ValueError, match="holds no key") as refusal:
            judge(server.url, api_key_env="NO_KEY")
        assert "secret" not in str(refusal.value)
        server.models = Answer(body={"hello": 1})
        with pytest.raises(ValueError, match="/v1/models lists no models: it is no OpenAI-compatible server"):
            judge(server.url)
        server.models = Answer(status=503, body="loading model")
        with pytest.raises(ValueError, match="does not answer .HTTP 503: loading model.: start the server, or wait"):
            judge(server.url)
    with pytest.raises(ValueError, match=rf"endpoint {server.url} does not answer .ConnectionRefusedError"):
        judge(server.url)


def test_a_key_is_not_carried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is an error, and where it leads to never hears of the key."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with serving(lambda question: points(1)) as thief, serving(lambda question: points(1)) as server:
        server.models = Answer(status=302, headers={"Location": thief.url + "/v1/models"}, body="moved")
        with pytest.raises(ValueError, match="/v1/models answered HTTP 302"):
            judge(server.url, api_key_env="JUDGE_KEY")
        assert not thief.headers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "localhost:8000"}, "endpoint must be an address like .*got 'localhost:8000'"),
        ({"endpoint": "http://me:secret@host"}, "without credentials or a query: put the key into an environment"),
        ({"endpoint": "http://host/?api_key=secret"}, "without credentials or a query"),
        ({"template": "unified_reward_flx"}, "Perhaps you meant 'unified_reward_flex'"),
        ({"template": "Rate {prompt}."}, "needs mode: pairs, or mode: points and dimensions"),
        ({"template": "Rate {prompt}.", "mode": "points"}, "needs mode: pairs, or mode: points and dimensions"),
        ({"mode": "pairs"}, "unified_reward_points is a template of points with dimensions of its own"),
        ({"dimension": "Style"}, r"dimension must be one of \['Alignment Score', .*got 'Style'"),
        ({"retries": -1}, "retries must be 0 or above, got -1"),
        ({"concurrency": 0}, "concurrency must be 1 or above, got 0"),
        ({"timeout": 0.0}, "timeout must be above 0 seconds, got 0.0"),
        ({"quality": 101}, "quality must be 100 or below, got 101"),
        ({"temperature": NAN}, "temperature must be 0 or above, got nan"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    values: dict[str, Any] = {"endpoint": "http://localhost:1", "model": "judge", **settings}
    with pytest.raises(ValueError, match=message) as refusal:
        VlmJudgeSettings(**values)
    assert "secret" not in str(refusal.value)


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
