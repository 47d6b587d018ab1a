"""What the judge client does about bad replies, failing servers and wrong settings."""

import json
import threading
import time
from typing import Any

import pytest

from diffpref.rewards import find_reward
from diffpref.rewards.vlm_judge import VlmJudgeSettings
from tests.rewards.judge_server import (
    NAN,
    Answer,
    equal,
    grey,
    in_turn,
    judge,
    level,
    points,
    serving,
)


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


def test_a_failure_before_an_unreadable_reply_does_not_stop_the_work() -> None:
    with serving(in_turn(Answer(status=500, body="oops"), "hm")) as server:
        reward = judge(server.url, retries=1)
        equal(reward.score(grey(1), ["a"]), NAN)
    assert (reward.statistics["unanswered"], reward.statistics["parse_failures"]) == (1, 1)


def test_what_is_never_readable_is_nan() -> None:
    with serving(lambda question: "hm" if level(question) == [1] else points(2, 2, 2)) as server:
        reward = find_reward("vlm_judge", settings={"endpoint": server.url, "model": "judge", "retries": 2})
        equal(reward.measure(grey(1, 2), ["a", "b"]), NAN, 2)
        with pytest.raises(ValueError, match="'vlm_judge' returned nan for image 0"):
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
        assert 0.3 < time.monotonic() - start < 50
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
        reward = judge(server.url, timeout=1.5, retries=1)
        equal(reward.score(grey(1, 2), ["a", "b"]), NAN, 4)
        end.set()
    assert (reward.statistics["timeouts"], reward.statistics["unanswered"]) == (2, 1)


def test_a_broken_connection_is_tried_again() -> None:
    with serving(
        in_turn(None, Answer(body="half an ans"), Answer(body={"object": "error"}), points(2, 2, 2))
    ) as server:
        equal(judge(server.url).score(grey(1), ["a"]), 2)


@pytest.mark.parametrize(
    ("answer", "said"), [(None, "RemoteProtocolError"), (Answer(status=502, body="no gateway"), "HTTP 502: no gateway")]
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
    with pytest.raises(ConnectionError, match="failed 2 times, at last with ConnectError"):
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


def test_what_is_loaded_and_its_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes to the server and nowhere else."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    with serving(lambda question: points(1)) as server:
        reward = judge(server.url, api_key_env="JUDGE_KEY", image_format="jpeg")
        reward.score(grey(1), ["a"])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer sk-secret"] * 2
    assert "secret" not in repr(reward.provenance) + repr(reward.settings)
    expected = {
        "scorer": "vlm_judge",
        "checkpoint": "CodeGoat24/UnifiedReward-2.0",
        "model": "judge",
        "endpoint": server.url,
        "template": "unified_reward_points",
        "unit": "points: mean of Alignment Score, Coherence Score, Style Score",
        "preprocessing": "jpeg, quality 95",
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
    with pytest.raises(ValueError, match=rf"endpoint {server.url} does not answer .ConnectError"):
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
        ({"endpoint": "http://secret@host"}, "without credentials or a query"),
        ({"endpoint": "http://host/?api_key=secret"}, "without credentials or a query"),
        ({"template": "unified_reward_flx"}, "Perhaps you meant 'unified_reward_flex'"),
        ({"template": "Rate {prompt}."}, "needs mode: pairs, or mode: points and dimensions"),
        ({"template": "Rate {prompt}.", "mode": "points"}, r"a template of points needs dimensions: \[NAME, ...\]"),
        ({"mode": "pairs"}, "unified_reward_points is a template of points with dimensions of its own"),
        ({"dimension": "Style"}, r"dimension must be one of \['Alignment Score', .*got 'Style'"),
        ({"retries": -1}, "retries must be 0 or above, got -1"),
        ({"concurrency": 0}, "concurrency must be 1 or above, got 0"),
        ({"timeout": 0.0}, r"timeout must be in \(0, inf\), got 0.0"),
        ({"quality": 101}, r"quality must be in \[1, 100\], got 101"),
        ({"temperature": NAN}, r"temperature must be in \[0, inf\), got nan"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    values: dict[str, Any] = {"endpoint": "http://localhost:1", "model": "judge", **settings}
    with pytest.raises(ValueError, match=message) as refusal:
        VlmJudgeSettings(**values)
    assert "secret" not in str(refusal.value)
