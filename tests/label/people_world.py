"""A folder with pairs of images, and a client of the page on which a person labels them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from diffpref.people.labelling import Labelling
from diffpref.people.server import LabelServer


class Client:
    """Requests as the page makes them, unless told otherwise."""

    def __init__(self, server: LabelServer) -> None:
        self.host = server.hosts[0]
        self.base = f"http://{self.host}"

    def get(self, path: str, **headers: str) -> tuple[bytes, Any]:
        with urlopen(Request(self.base + path, headers=headers), timeout=10) as reply:
            return reply.read(), reply.headers

    def state(self) -> dict[str, Any]:
        return json.loads(self.get("/state")[0])

    def post(self, path: str, body: object, **headers: str) -> dict[str, Any]:
        given = {"Origin": self.base, "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body).encode()
        with urlopen(Request(self.base + path, data=data, headers=given), timeout=10) as reply:
            return json.load(reply)

    def answer(self, name: str, answer: str) -> dict[str, Any]:
        return self.post("/answer", {"token": self.state()["token"], "id": name, "answer": answer})


@contextmanager
def open_page(folder: Path, annotator: str = "") -> Iterator[Client]:
    state = Labelling(folder, annotator)
    with LabelServer(state, 0) as server:
        server.timeout = 0.01
        thread = threading.Thread(target=server.ask)
        thread.start()
        try:
            yield Client(server)
        finally:
            state.finish()
            thread.join()


def status(request: Any, *arguments: Any, **headers: str) -> int:
    with pytest.raises(HTTPError) as refused:
        request(*arguments, **headers)
    with refused.value as reply:
        assert json.load(reply)["problem"]
        return reply.code


def labels(folder: Path, name: str = "labels.json") -> dict[str, str]:
    return json.loads((folder / name).read_text(encoding="utf-8"))["labels"]
