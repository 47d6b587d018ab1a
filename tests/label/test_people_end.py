"""When the labelling page stops: all answers given, an end by hand, an interrupt."""

import re
import threading
import time
from pathlib import Path

import pytest

from diffpref.people import labelling, serve, server
from diffpref.people.command import main
from diffpref.people.labelling import Labelling
from diffpref.people.server import LabelServer
from tests.label.people_world import Client, labels


def start(folder: Path, annotator: str = "") -> tuple[threading.Thread, Client]:
    """The public function, in a thread, and a client of its page."""
    servers: list[LabelServer] = []

    class Noted(LabelServer):
        def ask(self) -> None:
            servers.append(self)
            super().ask()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "LabelServer", Noted)
        options = {"port": 0, "annotator": annotator, "open_browser": False}
        thread = threading.Thread(target=serve, args=(folder,), kwargs=options, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not servers and time.monotonic() < deadline:
            time.sleep(0.005)
    return thread, Client(servers[0])


def test_it_stops_when_finished_and_continues_at_the_first_unanswered(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, client = start(folder, "anna")
    client.answer("0-0", "first")
    client.answer("0-2", "second")
    assert "2 of 4" in client.post("/finish", {"token": client.state()["token"]})["summary"]
    thread.join(10)
    assert not thread.is_alive()
    printed = capsys.readouterr().out
    assert "0 of 4 pairs are answered. Compare the images at" in printed and client.base in printed
    assert f"Next: label the other pairs with diffpref label-pairs {folder} --annotator anna" in printed

    monkeypatch.setattr(labelling, "GRACE", 0.1)
    thread, client = start(folder, "anna")
    assert [pair["answer"] for pair in client.state()["pairs"]] == ["first", None, "second", None]
    assert client.state()["annotator"] == "anna"
    client.answer("0-1", "tie")
    assert thread.is_alive()
    client.answer("0-3", "tie")
    thread.join(10)
    assert not thread.is_alive()
    assert f"All 4 pairs are answered, in {folder / 'labels.anna.json'}.\nNext: " in capsys.readouterr().out
    serve(folder, port=0, annotator="anna", open_browser=True)
    assert "All 4 pairs are answered" in capsys.readouterr().out


def test_after_the_last_answer_there_is_time_to_take_it_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(labelling.time, "monotonic", lambda: now[0])
    state = Labelling(folder, "")
    for i in range(4):
        state.answer(f"0-{i}", "first")
    assert not state.over()
    state.hold()
    now[0] = 100.0
    assert not state.over()
    state.answer("0-3", "second")
    now[0] = 100.0 + labelling.GRACE - 1
    assert not state.over()
    now[0] = 100.0 + labelling.GRACE
    assert state.over()
    assert labels(folder)["0-3"] == "second"


def test_an_interrupt_says_what_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: LabelServer) -> None:
        self.labelling.answer("0-0", "tie")
        raise KeyboardInterrupt

    monkeypatch.setattr(LabelServer, "ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main([str(folder), "--port", "0", "--no_browser"])
    assert "1 of 4 pairs are answered, in" in capsys.readouterr().out and labels(folder) == {"0-0": "tie"}


def test_the_browser_is_opened_where_there_is_a_screen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(LabelServer, "ask", lambda self: None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server.sys, "platform", "linux")
    assert main([str(folder), "--port", "0"]) == 0 and not opened
    monkeypatch.setenv("DISPLAY", ":0")
    assert main([str(folder), "--port", "0", "--no-browser"]) == 0 and not opened
    assert main([str(folder), "--port", "0"]) == 0
    deadline = time.monotonic() + 60
    while not opened and time.monotonic() < deadline:
        time.sleep(0.005)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", opened[0])


def test_a_port_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(ValueError, match="port must be in 1024..65535, or 0 for any free one, got 80"):
        serve(folder, port=80, annotator="", open_browser=False)
    with LabelServer(Labelling(folder, ""), 0) as server:
        with pytest.raises(ValueError, match=f"port {server.server_port} cannot be used .*take another with --port"):
            serve(folder, port=server.server_port, annotator="", open_browser=False)
