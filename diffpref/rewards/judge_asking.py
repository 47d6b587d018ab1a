"""Many questions to one judge at once: each asked until its reply can be read, all counted, answers in order."""

import base64
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from PIL import Image

from diffpref.rewards.judge_client import ChatClient, Trouble
from diffpref.rewards.vision import rgb

COUNTERS = ("requests", "retries", "timeouts", "parse_failures", "unanswered", "order_disagreements")
_LONGEST_PAUSE = 60.0
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the server draws a reply."""

    model: str
    temperature: float
    retry_temperature: float
    """After a reply that could not be read, which greedy decoding would repeat."""
    max_tokens: int
    seed: int

    def request(self, content: Sequence[Mapping[str, Any]], unread: int) -> dict[str, Any]:
        """What is sent.

        Args:
            unread: how many replies to this question could not be read yet."""
        warmer = max(self.temperature, self.retry_temperature)
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": list(content)}],
            "temperature": warmer if unread else self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed + unread,
        }


class Asker:
    """The questions to one server; safe to use by many threads.

    Args:
        retries: of a request that failed and of a reply that could not be read, together.
        backoff: seconds before the first retry of a failed request, doubled each time.
        concurrency: questions at once.
    """

    def __init__(
        self, client: ChatClient, sampling: Sampling, *, retries: int, backoff: float, concurrency: int
    ) -> None:
        self._client, self._sampling = client, sampling
        self._retries, self._backoff, self._concurrency = retries, backoff, concurrency
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    @property
    def counts(self) -> Mapping[str, int]:
        """A copy of every counter of `COUNTERS`."""
        with self._lock:
            return dict(self._counts)

    def count(self, *names: str) -> None:
        """One more of each."""
        with self._lock:
            self._counts.update(names)

    def ask(self, urls: Sequence[str], text: str, *, read: Callable[[str], T | None]) -> T | None:
        """What `read` finds in the reply about these images, or None where every try timed out or could not be read.

        Raises:
            ValueError: the server refuses the question.
            ConnectionError: the server fails otherwise after all retries.
        """
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*images, {"type": "text", "text": text}]
        unread, trouble = 0, None
        for attempt in range(self._retries + 1):
            if attempt:
                self.count("retries")
                if trouble:
                    time.sleep(_pause(trouble, self._backoff * 2 ** (attempt - 1)))
            self.count("requests")
            try:
                reply = self._client.complete(self._sampling.request(content, unread))
            except Trouble as problem:
                trouble = problem
                self.count(*["timeouts"] * problem.timed_out)
                continue
            trouble, answer = None, read(reply)
            if answer is not None:
                return answer
            self.count("parse_failures")
            unread += 1
        if trouble and not trouble.timed_out:
            raise ConnectionError(
                f"{self._client.base} failed {self._retries + 1} times, at last with {trouble.reason}. "
                "Look at the server's log, lower concurrency, or raise retries."
            )
        self.count("unanswered")
        return None

    def in_order(self, function: Callable[[U], T], tasks: Sequence[U]) -> list[T]:
        """The function of every task, `concurrency` at once; the first error stops the rest."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(function, tasks))


def data_url(image: Image.Image, image_format: Literal["png", "jpeg"], *, quality: int) -> str:
    """The RGB image's file in base64.

    Args:
        quality: of JPEG, 1 to 100.
    """
    file = io.BytesIO()
    if image_format == "jpeg":
        rgb(image).save(file, "JPEG", quality=quality)
    else:
        rgb(image).save(file, "PNG", compress_level=1)
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"


def _pause(trouble: Trouble, backoff: float) -> float:
    return min(backoff, _LONGEST_PAUSE) if trouble.wait is None else trouble.wait
