"""One OpenAI-compatible server over HTTP, with the standard library alone: what it serves, and one reply a question."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

_LONGEST_WAIT = 600.0
"""What a server's Retry-After is cut to, in seconds."""


class Trouble(Exception):
    """A request that failed but may succeed later.

    Args:
        wait: what the server asked to wait, in seconds.
    """

    def __init__(self, reason: str, wait: float | None = None, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.timed_out = reason, wait, timed_out


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would turn a redirected POST into a GET, and send the key to wherever it is sent."""

    def redirect_request(self, *arguments: object, **named: object) -> None:
        return None


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
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._timeout = timeout
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urllib.parse.urlsplit(self.base).hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy has another localhost
        self._opener = urllib.request.build_opener(*handlers)

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
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                text = _message(refusal)
            if refusal.code in (408, 429) or refusal.code >= 500:
                wait = _seconds(refusal.headers.get("Retry-After"))
                raise Trouble(f"HTTP {refusal.code}: {text}", wait, timed_out=refusal.code in (408, 504)) from None
            raise ValueError(f"{self.base}{path} answered HTTP {refusal.code}: {text}") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException, json.JSONDecodeError) as problem:
            reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
            late = isinstance(reason, TimeoutError)
            said = f"no byte for {self._timeout:g} seconds" if late else f"{type(reason).__name__}: {reason}"
            raise Trouble(said, timed_out=late) from None


def _message(refusal: urllib.error.HTTPError) -> str:
    """The body's own message in any of the servers' forms, else its beginning."""
    try:
        text = refusal.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return refusal.reason
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        return text.strip()[:300] or refusal.reason
    if isinstance(body, dict):
        inner = body.get("error", body)
        inner = inner.get("message", inner) if isinstance(inner, dict) else inner
        return str(inner)[:300]
    return text[:300]


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
