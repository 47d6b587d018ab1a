"""A small server on this machine that stands for the hub, for the real client."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest

NOTHING = "0" * 40


@dataclass
class FakeHub:
    """What the server was told, and what it answers."""

    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: dict[str, int] = field(default_factory=dict)
    """Part of a path -> the status that it gets."""
    account: dict[str, Any] = field(default_factory=dict)
    """What it says of the token."""
    licences: dict[str, str] = field(default_factory=dict)
    """Of the models that are there, by name."""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "no"}
        if path == "/api/whoami-v2":
            return 200, self.account
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            name = self.made[-1]["name"]
            owner = self.made[-1].get("organization") or "me"
            return 200, {
                "url": f"{huggingface_hub.constants.ENDPOINT}/{owner}/{name}",
                "name": f"{owner}/{name}",
                "id": "1",
            }
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {
                "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/me/run/commit/{NOTHING}",
                "commitOid": NOTHING,
                "success": True,
            }
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").partition("/revision")[0]
            data = {"cardData": {"license": self.licences[name]}} if name in self.licences else {}
            return 200, {"id": name, "siblings": [], "sha": NOTHING, **data}
        return 200, {}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    told = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.tokens.add(self.headers.get("Authorization") or "none")
            status, value = told.answer(self.path, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield told
    server.shutdown()
    thread.join()
    server.server_close()
