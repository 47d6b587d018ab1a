"""The labelling page over real HTTP: what it serves, refuses and writes; and the labels read back from the files."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from diffpref.files import atomic
from diffpref.people import Pair, labelling, read_labels, read_pairs, serve, server, unanswered, write_pairs
from diffpref.people.command import main
from diffpref.people.labelling import Labelling, display_order
from diffpref.people.pairs import label_files, write_answers
from diffpref.people.server import LabelServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs; picture j of pair i is a 4 x 4 square of the grey value 2 i + j."""
    place = tmp_path / "pictures"
    pairs = []
    for i in range(4):
        names = [f"p{i:05}/{j}.png" for j in (0, 1)]
        (place / f"p{i:05}").mkdir(parents=True)
        for j, name in enumerate(names):
            Image.new("L", (4, 4), 2 * i + j).save(place / name)
        pairs.append(Pair(f"0-{i}", f"prompt {i} <b>&", (names[0], names[1])))
    write_pairs(place, pairs)
    return place


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


def raw(client: Client, text: str) -> str:
    """The status line of a request that urllib would not send."""
    name, port = client.host.split(":")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(text.encode())
        with connection.makefile("rb") as reply:
            return reply.read().split(b"\r\n")[0].decode()


def labels(folder: Path, name: str = "labels.json") -> dict[str, str]:
    return json.loads((folder / name).read_text(encoding="utf-8"))["labels"]


def test_the_page_is_self_contained_and_asks_for_nothing_elsewhere(folder: Path) -> None:
    with open_page(folder) as client:
        page, headers = client.get("/")
    text = page.decode()
    assert (
        headers["Content-Type"] == "text/html; charset=utf-8"
        and "default-src 'none'" in headers["Content-Security-Policy"]
    )
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"// .*", "", text))
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]


def test_each_side_shows_the_picture_it_stands_for(folder: Path) -> None:
    with open_page(folder) as client:
        pairs = client.state()["pairs"]
        for i, pair in enumerate(pairs):
            assert pair["prompt"] == f"prompt {i} <b>&" and sorted(pair["shown"]) == ["first", "second"]
            for source, name in zip(pair["sources"], pair["shown"], strict=True):
                picture, headers = client.get(source)
                assert headers["Content-Type"] == "image/png"
                assert picture == (folder / f"p{i:05}/{['first', 'second'].index(name)}.png").read_bytes()


def test_sides_are_drawn_by_the_id_and_balanced() -> None:
    orders = [display_order(Pair(f"7-{i}", "", ("a", "b"))) for i in range(1000)]
    assert orders == [display_order(Pair(f"7-{i}", "other", ("c", "d"))) for i in range(1000)]
    swapped = orders.count(["second", "first"])
    assert 420 < swapped < 580  # five standard deviations of a fair coin: 500 +- 79


@pytest.mark.parametrize(
    "path",
    ["/pairs.json", "/labels.json", "/../secret.png", "/picture/../../secret.png", "/picture/0/first", "/p00000/0.png"],
)
def test_only_listed_pictures_are_served(folder: Path, path: str) -> None:
    Image.new("L", (1, 1)).save(folder.parent / "secret.png")
    with open_page(folder) as client:
        assert status(client.get, path) == 404
        token = client.state()["token"]
        for escape in ("../../../secret.png", "%2e%2e/secret.png", "0/first/../../../secret.png", "4/first", "0/third"):
            assert (
                raw(client, f"GET /picture/{token}/{escape} HTTP/1.1\r\nHost: {client.host}\r\n\r\n").split()[1]
                == "404"
            )


def test_a_picture_that_vanished_is_not_found(folder: Path) -> None:
    with open_page(folder) as client:
        source = client.state()["pairs"][0]["sources"][0]
        for picture in folder.glob("p00000/*.png"):
            picture.unlink()
        assert status(client.get, source) == 404


def test_the_names_of_other_sites_are_refused(folder: Path) -> None:
    with open_page(folder) as client:
        port = client.host.split(":")[1]
        assert client.get("/", Host=f"localhost:{port}")[0]
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            "localhost:1",
            f"127.0.0.1.evil.example:{port}",
        ):
            assert status(client.get, "/state", Host=host) == 403
            assert status(client.post, "/finish", {"token": client.state()["token"]}, Host=host) == 403
        assert raw(client, "GET /state HTTP/1.0\r\n\r\n").split()[1] == "403"
        assert client.state()


def test_answers_come_from_the_page_only(folder: Path) -> None:
    with open_page(folder) as client:
        body = {"token": client.state()["token"], "id": "0-0", "answer": "first"}
        for origin in ("http://evil.example", "null", "", f"https://{client.host}"):
            assert status(client.post, "/answer", body, Origin=origin) == 403
        assert status(client.post, "/answer", body, Content_Type="text/plain") == 415
        assert status(client.post, "/answer", body, Content_Length="5000") == 413
        assert status(client.post, "/answer", body | {"token": "of an earlier start"}) == 409
        assert status(client.post, "/answer", body | {"id": "0-9"}) == 400
        assert status(client.post, "/answer", body | {"id": ["0-0"]}) == 400
        assert status(client.post, "/answer", body | {"answer": "left"}) == 400
        assert status(client.post, "/answer", body | {"answer": None}) == 400
        assert status(client.post, "/answer", ["no object"]) == 400
        assert status(client.post, "/elsewhere", body) == 404
        assert not label_files(folder)
        assert client.post("/answer", body)["summary"].startswith("1 of 4")
    assert labels(folder) == {"0-0": "first"}


def test_every_answer_is_in_the_file_at_once_and_speaks_of_first_and_second(folder: Path) -> None:
    given = {"0-2": "second", "0-0": "first", "0-1": "first", "0-3": "tie"}
    with open_page(folder) as client:
        # Both orders occur: the file must not depend on them.
        assert len({tuple(pair["shown"]) for pair in client.state()["pairs"]}) == 2
        for i, (name, answer) in enumerate(given.items(), 1):
            client.answer(name, answer)
            assert labels(folder) == dict(list(given.items())[:i])
        client.answer("0-0", "second")
        assert [pair["answer"] for pair in client.state()["pairs"]] == ["second", "first", "second", "tie"]
    assert json.loads((folder / "labels.json").read_text()) == {
        "format": "diffpref-labels-1",
        "annotator": "",
        "labels": given | {"0-0": "second"},
    }
    assert read_labels(folder) == {"0-0": -1.0, "0-1": 1.0, "0-2": -1.0, "0-3": 0.0} and not unanswered(folder)
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["labels.json", "pairs.json"]


def test_a_failing_write_is_told_and_keeps_the_old_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_page(folder) as client:
        client.answer("0-0", "first")
        with monkeypatch.context() as patch:

            def full(*arguments: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(atomic.os, "replace", full)
            assert status(client.answer, "0-1", "first") == 500
        assert [pair["answer"] for pair in client.state()["pairs"]] == ["first", None, None, None]
        assert labels(folder) == {"0-0": "first"}


def test_two_windows_of_one_annotator_keep_each_others_answers(folder: Path) -> None:
    with open_page(folder) as one, open_page(folder) as two:
        one.answer("0-0", "first")
        two.answer("0-1", "tie")
        one.answer("0-2", "second")
    assert labels(folder) == {"0-0": "first", "0-1": "tie", "0-2": "second"}


def test_answers_in_parallel_are_all_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, answers: dict[str, str], *, annotator: str) -> None:
        time.sleep(0.03)
        write_answers(path, answers, annotator=annotator)

    monkeypatch.setattr(labelling, "write_answers", slow)
    with open_page(folder) as client:
        threads = [threading.Thread(target=client.answer, args=(f"0-{i}", "first")) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(labels(folder)) == 4


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
    assert "0 of 4 pairs are answered. Compare the pictures at" in printed and client.base in printed
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


def test_several_annotators_are_averaged(folder: Path) -> None:
    for name, answers in {
        "": ["first", "first", "tie"],
        "anna": ["first", "second", "second", "second"],
        "bo-2": ["tie"],
    }.items():
        with open_page(folder, name) as client:
            for i, answer in enumerate(answers):
                client.answer(f"0-{i}", answer)
    assert json.loads((folder / "labels.anna.json").read_text())["annotator"] == "anna"
    assert read_labels(folder) == pytest.approx({"0-0": 2 / 3, "0-1": 0.0, "0-2": -0.5, "0-3": -1.0})
    (folder / "labels.anna.json").unlink()
    assert list(read_labels(folder)) == ["0-0", "0-1", "0-2"] and unanswered(folder) == ["0-3"]


@pytest.mark.parametrize("name", ["../x", "a b", "a.b", "a/b", "\n"])
def test_an_annotators_name_is_a_part_of_a_file_name(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="annotator must consist of letters.*choose another name"):
        serve(folder, port=0, annotator=name, open_browser=False)


def test_a_port_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(ValueError, match="port must be in 1024..65535, or 0 for any free one, got 80"):
        serve(folder, port=80, annotator="", open_browser=False)
    with LabelServer(Labelling(folder, ""), 0) as server:
        with pytest.raises(ValueError, match=f"port {server.server_port} cannot be used .*take another with --port"):
            serve(folder, port=server.server_port, annotator="", open_browser=False)


def test_pairs_come_back_as_written_and_never_join_old_labels(folder: Path) -> None:
    pairs = read_pairs(folder)
    assert pairs[1] == Pair("0-1", "prompt 1 <b>&", ("p00001/0.png", "p00001/1.png"))
    write_pairs(folder, pairs[:2])
    assert read_pairs(folder) == pairs[:2] and unanswered(folder) == ["0-0", "0-1"] and read_labels(folder) == {}
    Labelling(folder, "anna").answer("0-0", "first")
    with pytest.raises(ValueError, match=r"labels\.anna\.json holds answers .*choose a new folder, or delete"):
        write_pairs(folder, pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair, got none"),
        ([("a", "p00000/0.png", "p00000/1.png"), ("a", "p00001/0.png", "p00001/1.png")], "ids must differ.*'a'"),
        ([("", "p00000/0.png", "p00000/1.png")], "ids must differ and not be empty"),
        ([("a", "p00000/0.png", "p00000/2.png")], r"picture 'p00000/2\.png' of pair 'a' does not exist; put it back"),
        ([("a", "p00000/0.png", "../secret.png")], "must lie in the folder; copy it there"),
        ([("a", "p00000/0.png", "/secret.png")], "must lie in the folder"),
        ([("a", "p00000/0.png", "link.png")], "must lie in the folder"),
        ([("a", "p00000/0.png", "pairs.json")], "must end in one of .*save it as PNG"),
    ],
)
def test_pairs_that_cannot_be_shown(folder: Path, pairs: list[tuple[str, str, str]], message: str) -> None:
    Image.new("L", (1, 1)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    given = [Pair(name, "p", (first, second)) for name, first, second in pairs]
    before = (folder / "pairs.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        write_pairs(folder, given)
    assert (folder / "pairs.json").read_bytes() == before
    entries = [{"id": pair.id, "prompt": "p", "pictures": list(pair.pictures)} for pair in given]
    atomic.write_json(folder / "pairs.json", {"format": "diffpref-pairs-1", "pairs": entries})
    with pytest.raises(ValueError, match=message):
        serve(folder, port=0, annotator="", open_browser=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "pairs.json must be valid JSON: .*Mend it"),
        ("[]", r"format must be 'diffpref-pairs-1', got \[\]"),
        ('{"format": "diffpref-pairs-2"}', "format must be 'diffpref-pairs-1', got 'diffpref-pairs-2'"),
        ('{"format": "diffpref-pairs-1"}', "pairs must be a list, got None"),
        ('{"format": "diffpref-pairs-1", "pairs": [{"id": 1}]}', "pair 0 must have the texts id and prompt"),
        (
            '{"format": "diffpref-pairs-1", "pairs": [{"id": "a", "prompt": "p", "pictures": ["b"]}]}',
            "pair 0 must have the texts id and prompt and two pictures",
        ),
    ],
)
def test_a_malformed_pairs_file(folder: Path, text: str, message: str) -> None:
    (folder / "pairs.json").write_text(text)
    for read in (read_pairs, read_labels, unanswered):
        with pytest.raises(ValueError, match=message):
            read(folder)


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.json does not exist: name a folder of pictures"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "diffpref-labels-1", "labels": {"0-0": "fir', r"labels\.anna\.json must be valid JSON: .*Mend it"),
        ('{"labels": {}}', "format must be 'diffpref-labels-1', got None"),
        ('{"format": "diffpref-labels-1", "labels": ["0-0"]}', r"labels must map pair ids to answers, got \['0-0'\]"),
        ('{"format": "diffpref-labels-1", "labels": {"9-9": "tie"}}', r"pair '9-9' is not in pairs\.json.*remove"),
        ('{"format": "diffpref-labels-1", "labels": {"0-0": "left"}}', r"'0-0' must be one of \['first'.*got 'left'"),
        ('{"format": "diffpref-labels-1", "labels": {"0-0": ["tie"]}}', r"'0-0' must be one of .*got \['tie'\]"),
    ],
)
def test_a_malformed_labels_file(folder: Path, text: str, message: str) -> None:
    (folder / "labels.anna.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(folder)
    with pytest.raises(ValueError, match=message):
        serve(folder, port=0, annotator="anna", open_browser=False)


def test_labels_need_their_pictures(folder: Path) -> None:
    Labelling(folder, "").answer("0-0", "first")
    (folder / "p00003/1.png").unlink()
    with pytest.raises(ValueError, match=r"pairs\.json: the picture 'p00003/1\.png' of pair '0-3' does not exist"):
        read_labels(folder)
