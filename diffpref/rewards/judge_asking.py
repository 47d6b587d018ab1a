"""Many questions to one judge at once: each asked until its reply can be read, all counted, answers in order."""

import base64
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image

from diffpref.rewards.judge_client import ChatClient, Trouble
from diffpref.rewards.vision import rgb

if TYPE_CHECKING:
    from diffpref.rewards.vlm_judge import VlmJudgeSettings

COUNTERS = ("requests", "retries", "timeouts", "parse_failures", "unanswered", "order_disagreements")
_LONGEST_PAUSE = 60.0
T = TypeVar("T")
U = TypeVar("U")


class Asker:
    """The questions to one server; safe to use by many threads."""

    def __init__(self, client: ChatClient, settings: "VlmJudgeSettings") -> None:
        self._client, self._settings = client, settings
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
        """What `read` finds in the reply about these pictures, or None where every try timed out or could not be read.

        Raises:
            ValueError: the server refuses the question.
            ConnectionError: the server fails otherwise after all retries.
        """
        unread, trouble = 0, None
        for attempt in range(self._settings.retries + 1):
            if attempt:
                self.count("retries")
                if trouble:
                    time.sleep(_pause(trouble, self._settings.backoff * 2 ** (attempt - 1)))
            self.count("requests")
            try:
                reply = self._client.complete(self._body(urls, text, unread))
            except Trouble as problem:
                trouble = problem
                self.count(*["timeouts"] * problem.timed_out)
                continue
            trouble, found = None, read(reply)
            if found is not None:
                return found
            self.count("parse_failures")
            unread += 1
        if trouble and not trouble.timed_out:
            raise ConnectionError(
                f"{self._client.base} failed {self._settings.retries + 1} times, at last with {trouble.reason}. "
                "Look at the server's log, lower concurrency, or raise retries."
            )
        self.count("unanswered")
        return None

    def in_order(self, function: Callable[[U], T], tasks: Sequence[U]) -> list[T]:
        """The function of every task, `concurrency` at once; the first error stops the rest."""
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            return list(pool.map(function, tasks))

    def _body(self, urls: Sequence[str], text: str, unread: int) -> dict[str, Any]:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        settings = self._settings
        # Greedy decoding would repeat the reply that could not be read.
        warmer = max(settings.temperature, settings.retry_temperature)
        return {
            "model": settings.model,
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}],
            "temperature": warmer if unread else settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed + unread,
        }


def data_url(image: Image.Image, image_format: Literal["png", "jpeg"], *, quality: int) -> str:
    """The RGB picture's file in base64.

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
