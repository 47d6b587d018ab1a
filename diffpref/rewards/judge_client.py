"""One OpenAI-compatible server over HTTP: what it serves, and one reply a question."""

import json
import urllib.parse
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

_LONGEST_WAIT = 600.0
"""What a server's Retry-After is cut to, in seconds."""
_LIMITS = httpx2.Limits(max_connections=None)
"""How many questions are open at once is the asker's to say."""


class Trouble(Exception):
    """A request that failed but may succeed later.

    Args:
        wait: what the server asked to wait, in seconds.
    """

    def __init__(self, reason: str, wait: float | None = None, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.timed_out = reason, wait, timed_out


def base_url(endpoint: str) -> str:
    """The endpoint up to before /v1.

    Raises:
        ValueError: no http or https address, or one with credentials or a query in it.
    """
    parts = urllib.parse.urlsplit(endpoint)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "endpoint must be an address alone, without credentials or a query: put the key into an environment "
            "variable and name that in api_key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f'endpoint must be an address like "http://localhost:8000", got {endpoint!r}.')
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


class ChatClient:
    """A server that speaks /v1/models and /v1/chat/completions (vLLM, SGLang, llama.cpp); may be used by many threads.

    Args:
        key: sent as a bearer token; "" for none.
        timeout: seconds without a byte from the server.
    """

    def __init__(self, endpoint: str, *, key: str, timeout: float) -> None:
        self.base = base_url(endpoint)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        # A proxy has another localhost. A redirect is not followed: the key would go to wherever it leads.
        here = urllib.parse.urlsplit(self.base).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx2.Client(headers=headers, timeout=timeout, trust_env=not here, limits=_LIMITS)

    def models(self) -> dict[str, str]:
        """The served names, each with the model behind it where the server says so, else with itself.

        Raises:
            Trouble, ValueError: as `complete` does.
        """
        answer = self._call("/v1/models", None)
        served = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(served, list):
            raise ValueError(f"{self.base}/v1/models lists no models: it is no OpenAI-compatible server.")
        return {str(model.get("id")): str(model.get("root") or model.get("id")) for model in served}

    def complete(self, question: dict[str, Any]) -> str:
        """The text of the reply, "" where there is none.

        Raises:
            Trouble: no answer in time, a broken connection, or HTTP 408, 429 or 5xx.
            ValueError: the server refuses the question; the message has its reason.
        """
        answer = self._call("/v1/chat/completions", question)
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (LookupError, TypeError):
            raise Trouble(f"an answer without choices: {json.dumps(answer):.200}") from None

    def _call(self, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._client.request("GET" if body is None else "POST", self.base + path, json=body)
            if answer.is_success:
                return answer.json()
        except httpx2.TimeoutException:
            raise Trouble(f"no byte for {self._timeout:g} seconds", timed_out=True) from None
        except (httpx2.TransportError, httpx2.DecodingError, ValueError) as problem:
            raise Trouble(f"{type(problem).__name__}: {problem}") from None
        text = f"HTTP {answer.status_code}: {_message(answer)}"
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            wait = _seconds(answer.headers.get("Retry-After"))
            raise Trouble(text, wait, timed_out=answer.status_code in (408, 504))
        raise ValueError(f"{self.base}{path} answered {text}")


def _message(refusal: httpx2.Response) -> str:
    """The body's own message in any of the servers' forms, else its beginning."""
    try:
        body = refusal.json()
    except ValueError:
        return refusal.text.strip()[:300] or refusal.reason_phrase
    if isinstance(body, dict):
        inner = body.get("error", body)
        inner = inner.get("message", inner) if isinstance(inner, dict) else inner
        return str(inner)[:300]
    return refusal.text[:300]


def _seconds(header: str | None) -> float | None:
    """Retry-After is a number of seconds or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        zoned = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        wait = (zoned - datetime.now(timezone.utc)).total_seconds()
    return min(max(wait, 0.0), _LONGEST_WAIT)
