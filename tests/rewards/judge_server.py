"""A server on this machine that answers as vLLM does, as a test tells it."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffpref.rewards.vlm_judge import VlmJudge, VlmJudgeSettings

NAN = float("nan")
MODELS = {"object": "list", "data": [{"id": "judge", "object": "model", "root": "CodeGoat24/UnifiedReward-2.0"}]}


class Answer:
    """What goes back: a text as the model's reply, or any status, headers and body."""

    def __init__(
        self, text: str | None = "", *, status: int = 200, headers: dict[str, str] | None = None, body: object = None
    ) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.status, self.headers = status, headers or {}
        self.body = {"object": "chat.completion", "choices": [choice]} if body is None else body


class JudgeServer(ThreadingHTTPServer):
    """Remembers every question, its headers, and how many were open at once; `reply` None hangs up."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Answer | str | None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.models = reply, Answer(body=MODELS)
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up waiting is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.headers.append(dict(self.headers))
        self.send(self.server.models if self.path == "/v1/models" else Answer(status=404, body="Not Found"))

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.questions.append(question)
            self.server.headers.append(dict(self.headers))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        answer = self.server.reply(question) if self.path == "/v1/chat/completions" else Answer(status=404)
        with self.server.lock:
            self.server.open -= 1
        if answer is not None:
            self.send(answer if isinstance(answer, Answer) else Answer(answer))

    def send(self, answer: Answer) -> None:
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Answer | str | None]) -> Iterator[JudgeServer]:
    server = JudgeServer(reply)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def grey(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (6, 4), (level, level, level)) for level in levels]


def seen(question: dict[str, Any]) -> list[np.ndarray]:
    """The question's pictures as the server reads them."""
    parts = [part for part in question["messages"][0]["content"] if part["type"] == "image_url"]
    files = [base64.b64decode(part["image_url"]["url"].partition("base64,")[2]) for part in parts]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def level(question: dict[str, Any]) -> list[int]:
    """The grey of every picture."""
    return [int(picture[0, 0, 0]) for picture in seen(question)]


def asked(question: dict[str, Any]) -> str:
    return question["messages"][0]["content"][-1]["text"]


def points(alignment: float, coherence: float = 1, style: float = 1) -> str:
    return f"Alignment Score (1-5): {alignment}\nCoherence Score (1-5): {coherence}\nStyle Score (1-5): {style}\n"


def brighter(question: dict[str, Any]) -> str:
    """An honest judge of pairs in Flex's form."""
    first, second = level(question)
    winner = "tie" if first == second else "Image 1" if first > second else "Image 2"
    return json.dumps({"categories": [{"name": "A", "cat_winner": "Image 1"}], "winner": winner})


def in_turn(*replies: Answer | str | None) -> Callable[[dict[str, Any]], Answer | str | None]:
    """One reply after the other, and the last for ever."""
    left, lock = list(replies), threading.Lock()

    def reply(question: dict[str, Any]) -> Answer | str | None:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return reply


def slow(question: dict[str, Any]) -> str:
    """The brighter a picture, the sooner its points of brightness / 50."""
    (grey_level,) = level(question)
    time.sleep((250 - grey_level) / 1000)
    return points(grey_level / 50)


def judge(url: str, **settings: object) -> VlmJudge:
    values = {"endpoint": url, "model": "judge", "backoff": 0.01, **settings}
    return VlmJudgeSettings(**values).load(torch.device("cpu"))  # type: ignore[arg-type]


def flex(url: str, **settings: object) -> VlmJudge:
    return judge(url, template="unified_reward_flex", **settings)


def equal(scores: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), equal_nan=True)
