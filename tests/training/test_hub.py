"""A run on the hub: through the real client, up to a small server on this machine that stands for the hub."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from diffpref.files import hub

Run = Callable[..., Path]
NOTHING = "0" * 40


@dataclass
class FakeHub:
    """What the server was told, and what it answers."""

    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: dict[str, int] = field(default_factory=dict)
    """Part of a path -> the status that it gets."""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "no"}
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
            return 200, {
                "id": path.removeprefix("/api/models/").partition("/revision")[0],
                "siblings": [],
                "sha": NOTHING,
            }
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


def test_a_finished_run_is_put_on_the_hub(run: Run, fake: FakeHub) -> None:
    folder = run(max_train_steps=1, checkpointing_steps=1, push_to_hub=True, hub_private_repo=True)
    assert [(made["name"], made["visibility"]) for made in fake.made] == [("run", "private")]
    assert {"README.md", "config.yaml", "done.json", "pytorch_lora_weights.safetensors", "report.html"} <= set(
        fake.files
    )
    assert not [name for name in fake.files if name.startswith(("checkpoint", "cache", "logs"))]
    assert all((folder / name).read_bytes() == content for name, content in fake.files.items())
    assert "Bearer hf_secret" in fake.tokens
    assert "hf_secret" not in (folder / "config.yaml").read_text() + (folder / "environment.json").read_text()


def test_the_page_may_have_a_name_of_its_own(run: Run, fake: FakeHub) -> None:
    run(max_train_steps=1, push_to_hub=True, hub_model_id="team/better")
    assert (fake.made[0]["organization"], fake.made[0]["name"]) == ("team", "better")
    assert fake.made[0].get("visibility") != "private"


def test_without_the_flag_nobody_is_asked(run: Run, fake: FakeHub) -> None:
    run(max_train_steps=1, hub_model_id="team/better")
    assert not fake.tokens


def test_no_token_is_said_before_the_start(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="push_to_hub needs a token .*`hf auth login`, or set HF_TOKEN"):
        run(push_to_hub=True)
    assert not (tmp_path / "run").exists()


def test_a_token_that_may_not_write_is_said_before_the_start(run: Run, fake: FakeHub, tmp_path: Path) -> None:
    fake.refuse |= {"/api/repos/create": 403, "/api/models/team/better": 404}
    with pytest.raises(ValueError, match="push_to_hub: team/better cannot be written on the hub .*the token's rights"):
        run(push_to_hub=True, hub_model_id="team/better")
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_away_at_the_start(run: Run, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hub._reachable.cache_clear()
    with pytest.raises(ValueError, match="push_to_hub: run cannot be written on the hub"):
        run(push_to_hub=True)
    hub._reachable.cache_clear()


def test_a_hub_that_refuses_the_upload_leaves_a_finished_run(run: Run, fake: FakeHub, tmp_path: Path) -> None:
    fake.refuse["/commit/"] = 400
    with pytest.raises(
        ValueError, match="run is complete, but could not be put on the hub .*hf upload me/run .*run . "
    ):
        run(max_train_steps=1, push_to_hub=True)
    assert (tmp_path / "run" / "done.json").is_file()
